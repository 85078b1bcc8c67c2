"""Siblings are one bundle and a table of values: each comes from another byte for byte, and the table is in the README."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from bundle_folders import read
from sibling_values import METADATA, README, SIBLINGS, in_readme, sibling_values

from medical_diffusion_components.new_bundle import COPIED, new_bundle

SOURCE = next(bundle for bundle in SIBLINGS if bundle.name == "adni_ldm")
OTHERS = [bundle for bundle in SIBLINGS if bundle != SOURCE]


@pytest.fixture(params=OTHERS, ids=[bundle.name for bundle in OTHERS])
def sibling(request) -> Path:
    return request.param


def made_from_values(sibling: Path, folder: Path) -> Path:
    values, config = sibling_values(sibling), read(sibling / "configs" / "train.yaml")
    sizes = config["image_size"], config["compression"], values.spacing, config["axcodes"]
    return new_bundle(SOURCE, folder / sibling.name, values.metadata["name"], *sizes, values.subject, values.knobs)


def test_a_sibling_is_its_source_with_other_values_byte_for_byte(sibling: Path, tmp_path: Path) -> None:
    """But for prepare.yaml, whose steps are those of one data set."""
    made = made_from_values(sibling, tmp_path)
    for file in (name for name in COPIED if name != "prepare.yaml"):
        expected = (sibling / "configs" / file).read_text().splitlines()
        assert (made / "configs" / file).read_text().splitlines() == expected, file
        assert (made / "configs" / file).read_bytes() == (sibling / "configs" / file).read_bytes(), file
    assert (SOURCE / "configs" / "fast.yaml").read_bytes() == (sibling / "configs" / "fast.yaml").read_bytes()


def test_metadata_of_a_sibling_differ_in_its_texts_and_sizes(sibling: Path, tmp_path: Path) -> None:
    made = json.loads((made_from_values(sibling, tmp_path) / "configs" / "metadata.json").read_text())
    expected = json.loads((sibling / "configs" / "metadata.json").read_text())
    of_source = json.loads((SOURCE / "configs" / "metadata.json").read_text())
    shapes = copy.deepcopy(made["network_data_format"])
    shapes["outputs"]["pred"]["modality"] = sibling_values(sibling).modality
    assert shapes == expected["network_data_format"]
    texts = {*METADATA, "network_data_format", "eval_metrics"}
    assert made["eval_metrics"] == {} and of_source["eval_metrics"] != {}  # numbers are of weights, and stay with them
    assert {k: v for k, v in expected.items() if k not in texts} == {
        k: v for k, v in of_source.items() if k not in texts
    }


def test_a_knob_that_no_configuration_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no configuration of adni_ldm has the knobs \['bach_size'\]"):
        new_bundle(SOURCE, tmp_path / "own", "Own", (64, 64, 64), (4, 4, 4), knobs={"bach_size": ("4", "per device")})
    assert list(tmp_path.iterdir()) == []


def test_the_readme_has_the_table_of_the_files() -> None:
    text = README.read_text()
    assert in_readme(text) == text, "python tests/bundles/sibling_values.py writes it anew"
    for bundle in SIBLINGS:
        assert f"`{bundle.name}`" in text
