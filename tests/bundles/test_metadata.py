"""What the Model Zoo's checks and MONAI Label want of a bundle's metadata."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from bundle_folders import REPOSITORY, bundles_with, for_bundles_with, read
from monai.bundle import ConfigParser

import medical_diffusion_components

REQUIRED = {
    "version",
    "changelog",
    "monai_version",
    "pytorch_version",
    "numpy_version",
    "required_packages_version",
    "name",
    "task",
    "description",
    "authors",
    "copyright",
    "data_source",
    "data_type",
    "image_classes",
    "eval_metrics",
    "intended_use",
    "references",
    "network_data_format",
}
LARGEST_FILE = 25 * 2**20


def metadata(bundle: Path) -> dict:
    return json.loads((bundle / "configs" / "metadata.json").read_text())


def pins() -> dict[str, str]:
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))


@for_bundles_with("train.yaml")
def test_metadata_have_what_the_model_zoo_wants(bundle: Path) -> None:
    found = metadata(bundle)
    assert found.keys() >= REQUIRED
    assert found["version"] in found["changelog"]
    assert all(isinstance(found[key], str) and found[key] for key in ("name", "task", "description", "intended_use"))
    assert all(isinstance(reference, str) for reference in found["references"])


@for_bundles_with("train.yaml")
def test_metadata_are_of_the_types_that_their_schema_wants(bundle: Path) -> None:
    """The schema is fetched by its URL in the Model Zoo's check; here, what it says in our words (meta_schema_20240725)."""
    found = metadata(bundle)
    objects = {"changelog", "required_packages_version", "eval_metrics", "network_data_format"}
    assert {key for key, value in found.items() if isinstance(value, dict)} == objects
    assert {key for key, value in found.items() if isinstance(value, list)} == {"references"}
    assert all(isinstance(value, str) for key, value in found.items() if key not in objects | {"references"})
    for tensor in (*found["network_data_format"]["inputs"].values(), *found["network_data_format"]["outputs"].values()):
        assert all(isinstance(tensor[key], str) for key in ("type", "format", "dtype"))
        assert isinstance(tensor["num_channels"], int) and isinstance(tensor.get("is_patch_data", False), bool)
        assert all(isinstance(side, int | str) for side in tensor["spatial_shape"])
        assert all(isinstance(limit, int | float) for limit in tensor["value_range"])
        assert isinstance(tensor.get("channel_def", {}), dict)


@for_bundles_with("train.yaml")
def test_metadata_name_the_versions_that_the_tests_ran_with(bundle: Path) -> None:
    found, pinned = metadata(bundle), pins()
    named = found["required_packages_version"] | {
        "monai": found["monai_version"],
        "torch": found["pytorch_version"],
        "numpy": found["numpy_version"],
    }
    own = named.pop("medical-diffusion-bundles")
    assert own == medical_diffusion_components.__version__
    assert named == {package: pinned[package] for package in named}


@for_bundles_with("train.yaml")
def test_a_bundle_has_its_licence_and_documents(bundle: Path) -> None:
    assert "Apache License" in (bundle / "LICENSE").read_text()
    assert (bundle / "configs" / "logging.conf").is_file()
    readme = (bundle / "docs" / "README.md").read_text()
    assert readme.startswith("# ") and f"bundles/{bundle.name}/configs/train.yaml" in readme
    assert len((bundle / "docs" / "data_license.txt").read_text()) > 100


@for_bundles_with("train.yaml")
def test_no_file_of_a_bundle_is_too_large_for_the_model_zoo(bundle: Path) -> None:
    made = {"models", "output", "demo"}
    files = [file for file in bundle.rglob("*") if file.is_file() and file.relative_to(bundle).parts[0] not in made]
    assert [file for file in files if file.stat().st_size > LARGEST_FILE] == []


@for_bundles_with("train_autoencoder.yaml", "inference.json")
def test_the_declared_format_is_that_of_the_network(bundle: Path) -> None:
    format = metadata(bundle)["network_data_format"]
    noise, volume = format["inputs"]["image"], format["outputs"]["pred"]
    parser = ConfigParser(read(bundle / "configs" / "inference.json"))
    channels, *latent = parser.get_parsed_content("latent_shape")
    assert (noise["num_channels"], noise["spatial_shape"]) == (channels, latent)
    assert volume["num_channels"] == parser.get_parsed_content("image_channels")
    assert volume["spatial_shape"] == parser.get_parsed_content("image_size")
    assert noise["dtype"] == volume["dtype"] == str(torch.float32).removeprefix("torch.")
    assert volume["value_range"] == [-1, 1]


@for_bundles_with("inference.json")
def test_monai_label_can_read_the_declared_format(bundle: Path) -> None:
    """It ends the whole server without one, takes the first output, and reads its classes from there."""
    format = metadata(bundle)["network_data_format"]
    assert next(iter(format["outputs"])) == "pred" and "image" in format["inputs"]
    channels = format["outputs"]["pred"]["channel_def"]
    assert all(re.fullmatch(r"\d+", key) and isinstance(name, str) for key, name in channels.items())
    # every channel but the background is offered as a label to draw with; an image has none
    num_channels = format["outputs"]["pred"]["num_channels"]
    assert len(channels) == (0 if num_channels == 1 else num_channels)


def released_weights(bundle: Path) -> Path | None:
    """The weights that are in the repository; those that somebody has trained in the bundle's folder are not."""
    name = "released/model.pt"
    # outside of a repository nothing is listed
    listed = subprocess.run(["git", "-C", str(bundle), "ls-files", name], capture_output=True, text=True, check=False)
    return bundle / name if listed.stdout.strip() else None


def disagreement(eval_metrics: dict, weights: Path | None) -> str:
    """Why these numbers are not those of the released weights; nothing where they are."""
    if weights is None:
        return "numbers without weights" if eval_metrics else ""
    measured, released = eval_metrics.get("weights_sha256"), hashlib.sha256(weights.read_bytes()).hexdigest()
    return "" if measured == released else f"measured with {measured}, released are {released}"


RECORDING = [
    bundle for bundle in bundles_with("evaluate.yaml") if "recording" in read(bundle / "configs/evaluate.yaml")
]


def test_generators_can_record_their_numbers() -> None:
    assert {bundle.name for bundle in RECORDING} >= {"adni_gan", "adni_ldm"}


@pytest.mark.parametrize("bundle", RECORDING, ids=[bundle.name for bundle in RECORDING])
def test_measured_numbers_are_those_of_the_released_weights(bundle: Path) -> None:
    if shutil.which("git") is None or not (REPOSITORY / ".git").exists():
        pytest.skip("only a checkout knows which weights are released")
    assert disagreement(metadata(bundle)["eval_metrics"], released_weights(bundle)) == ""


def test_numbers_of_other_weights_or_of_none_are_noticed(tmp_path: Path) -> None:
    weights = tmp_path / "model.pt"
    weights.write_bytes(b"released")
    measured = {"weights_sha256": hashlib.sha256(b"released").hexdigest()}
    assert disagreement(measured, weights) == disagreement({}, None) == ""
    assert disagreement(measured, None) and disagreement({}, weights)
    weights.write_bytes(b"released again")
    assert disagreement(measured, weights)
