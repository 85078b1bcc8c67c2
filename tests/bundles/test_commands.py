"""The commands of the README work from the repository's root, from inside the bundle, and from anywhere else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import monai.bundle
import pytest
from bundle_folders import REPOSITORY, bundles_with, for_bundles_with, read, undisturbed
from monai.bundle import ConfigParser

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:parsing config_file")]


@for_bundles_with("train.yaml")
@pytest.mark.parametrize("config", ["train.yaml", "inference.json"])
def test_a_bundle_knows_its_folder_from_everywhere(bundle: Path, config: str, tmp_path: Path, monkeypatch) -> None:
    file = bundle / "configs" / config
    if not file.is_file():
        return
    run_id = read(file)["run"].removeprefix("%")
    for place in (REPOSITORY, bundle, bundle / "configs", tmp_path):
        monkeypatch.chdir(place)
        with undisturbed() as printed:
            asked = {run_id: "$print('root:', @bundle_root, @output_dir)"}
            monai.bundle.run(run_id, config_file=os.path.relpath(file), **asked)
        assert f"root: {bundle} {bundle / 'output'}\n" in printed.getvalue()
    assert list(tmp_path.iterdir()) == []


@for_bundles_with("inference.json")
def test_without_a_workflow_the_bundle_is_where_one_stands(bundle: Path, monkeypatch) -> None:
    """MONAI Label and ``ckpt_export`` read the configuration with a bare parser."""
    monkeypatch.chdir(bundle)
    parser = ConfigParser(read(bundle / "configs" / "inference.json"))
    assert parser.get_parsed_content("bundle_root") == str(bundle)


def test_the_command_itself_ends_with_the_cause_of_its_failure(tmp_path: Path) -> None:
    config = bundles_with("train.yaml")[0] / "configs" / "train.yaml"
    command = [sys.executable, "-m", "monai.bundle", "run", "training", "--config_file", str(config)]
    done = subprocess.run(
        [*command, "--dataset_dir", "/none"], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1].startswith(
        "Stopped: FileNotFoundError: the dataset folder /none does not exist"
    )
    assert list(tmp_path.iterdir()) == []
