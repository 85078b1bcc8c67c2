from __future__ import annotations

import copy
from pathlib import Path

import pytest
from monai.bundle import ConfigParser
from two_stages import SECOND, start

from medical_diffusion_components.workflow import bundle_version


@pytest.mark.parametrize("path", ["two_stages/configs", "configs", "."])
def test_a_bundle_knows_its_folder_by_any_relative_path(configs: Path, path: str, monkeypatch) -> None:
    place = {"two_stages/configs": configs.parents[1], "configs": configs.parent, ".": configs}[path]
    monkeypatch.chdir(place)
    start(Path(path)).run()
    assert [file.relative_to(configs.parent) for file in configs.parent.rglob("*.pt")] == [Path("models/first.pt")]


def test_with_a_bare_parser_the_bundle_is_the_current_folder(configs: Path, monkeypatch) -> None:
    monkeypatch.chdir(configs.parent)
    parser = ConfigParser(copy.deepcopy(SECOND))  # it resolves "%training" in place
    assert parser.get_parsed_content("bundle_root") == str(configs.parent)


def test_the_version_is_that_of_the_metadata(configs: Path) -> None:
    assert bundle_version(str(configs.parent)) == "two_stages 1.2.3"
