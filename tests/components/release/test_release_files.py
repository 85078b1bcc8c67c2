from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor, nn

from medical_diffusion_components.release import vendored
from medical_diffusion_components.release.bundle_archive import write_zip
from medical_diffusion_components.release.distributions import build_distributions
from medical_diffusion_components.release.model_card import HEADINGS, front_matter, model_card
from medical_diffusion_components.release.torchscript import scripted
from medical_diffusion_components.release.vendored import vendored_files

ROOT = Path(__file__).parents[3]
METADATA = {
    "name": "Knees",
    "authors": "somebody",
    "description": "A generator of knees",
    "image_classes": "single channel",
    "data_source": "a hospital",
    "intended_use": "Research only",
    "pytorch_version": "1",
    "monai_version": "2",
    "numpy_version": "3",
    "references": ["A. 2020", "B. 2021"],
    "eval_metrics": {
        "weights_sha256": "abc",
        "synthetic_volumes": 45,
        "first_stage": {"ssim": 0.9659},
        "volumes": {"ms_ssim": {"value": 0.2512, "se": 0.0123, "floor": 0.5, "floor_sd": 0.02, "n": 45}},
        "audit": {"volumes": {"copy": 0, "withheld": 1, "released": 44}},
    },
    "network_data_format": {
        "inputs": {"image": {"type": "noise", "num_channels": 8, "spatial_shape": [1, 2, 3], "dtype": "float32"}},
        "outputs": {
            "pred": {
                "type": "image",
                "modality": "MR",
                "num_channels": 1,
                "spatial_shape": [4, 5, 6],
                "dtype": "float32",
            }
        },
    },
}
NOTE = {"data": "embedded knee phantom cohort", "notice": "No patient was seen.", "cases": {"training": 7}}


def test_a_zip_follows_from_its_files_and_the_date_it_is_given(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    one = write_zip(tmp_path / "one.zip", {"b/x": b"1" * 100, "a/y": b"2"}).read_bytes()
    assert one == write_zip(tmp_path / "other.zip", {"a/y": b"2", "b/x": b"1" * 100}).read_bytes()
    with zipfile.ZipFile(io.BytesIO(one)) as archive:
        assert archive.namelist() == ["a/y", "b/x"] and archive.read("b/x") == b"1" * 100
        assert {entry.date_time for entry in archive.infolist()} == {(2023, 11, 14, 22, 13, 20)}
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000001")
    write_zip(tmp_path / "one.zip", {"b/x": b"1" * 100, "a/y": b"2"})
    monkeypatch.delenv("SOURCE_DATE_EPOCH")
    with zipfile.ZipFile(write_zip(tmp_path / "one.zip", {"a": b""})) as archive:
        assert archive.infolist()[0].date_time == (1980, 1, 1, 0, 0, 0)


class Affine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([2.0, 3.0]))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight if x.sum() > 0 else -x


def test_torchscript_says_nothing_of_where_it_was_made_and_still_runs() -> None:
    content = scripted(Affine(), {"metadata.json": "{}"})
    assert content == scripted(Affine(), {"metadata.json": "{}"})
    assert str(Path(__file__).parent).encode() not in content
    extra = {"metadata.json": ""}
    loaded = torch.jit.load(io.BytesIO(content), _extra_files=extra)
    assert extra["metadata.json"] == b"{}"
    assert loaded(torch.ones(2)).tolist() == [2, 3] and loaded(-torch.ones(2)).tolist() == [1, 1]


@pytest.mark.slow
def test_the_package_inside_a_bundle_knows_no_other_and_imports_on_demand(tmp_path: Path) -> None:
    for name, content in vendored_files("my_ldm"):
        assert name.startswith("my_ldm_components/") and b"medical_diffusion_components" not in content, name
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "metadata.json").write_text("{}")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    code = """
import sys
sys.path.insert(0, sys.argv[1])
import my_ldm_components.reports, my_ldm_components.metrics, my_ldm_components.networks, my_ldm_components.workflow
assert not {"torch", "matplotlib", "scipy"} & set(sys.modules)
from my_ldm_components.metrics.jackknife import jackknife as direct   # a module of the function's name
assert callable(my_ldm_components.metrics.jackknife) and my_ldm_components.metrics.jackknife is direct
assert my_ldm_components.networks.fast.in_use() is True               # a module that is exported
assert my_ldm_components.networks.VQGAN.__module__ == "my_ldm_components.networks.vqgan"
assert "VQGAN" in my_ldm_components.networks.__all__
assert my_ldm_components.workflow.bundle_root() == sys.argv[1]        # the bundle that it lies in
try:
    my_ldm_components.networks.Nonsense
except AttributeError:
    print("fine")
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, cwd=elsewhere)
    assert done.stdout == "fine\n", done.stderr


def test_a_room_that_does_more_than_export_stays_as_it_is() -> None:
    text = "from medical_diffusion_components.files import write_json\n\nSTATE = {}\n"
    assert vendored._lazy(text) == text


def test_a_card_has_the_model_zoos_headings_and_shows_numbers_of_these_weights_alone() -> None:
    card = model_card("knees", METADATA, NOTE, "abc")
    assert [line[3:] for line in card.splitlines() if line.startswith("## ")] == list(HEADINGS)
    assert "| volumes | ms_ssim | 0.251 ± 0.012 | 0.5 ± 0.02 |" in card and "| first_stage | ssim | 0.9659 | |" in card
    assert "(synthetic volumes: 45)" in card and "0 copy, 1 withheld, 44 released" in card
    assert "embedded knee phantom cohort (7 training)" in card
    assert "No patient was seen." in card and "4x5x6 voxels" in card and "[2] B. 2021" in card
    other = model_card("knees", METADATA, NOTE, "def")
    assert "0.251" not in other and "Not measured with these weights on held-out cases.\n" in other


def test_a_card_without_numbers_of_held_out_cases_has_those_of_the_validation() -> None:
    note = {**NOTE, "validation": {"val_dice": 0.87829, "val_surface_distance": 0.8666}}
    card = model_card("knees", {**METADATA, "eval_metrics": {}}, note, "abc")
    assert "training: val_dice 0.8783, val_surface_distance 0.8666." in card


def test_a_card_says_of_a_validation_that_was_no_number_that_it_was_none() -> None:
    note = {**NOTE, "validation": {"val_dice": None, "val_dice_reason": "not a number", "val_loss": 0.5}}
    card = model_card("knees", {**METADATA, "eval_metrics": {}}, note, "abc")
    assert "training: val_dice not a number, val_loss 0.5." in card
    assert "val_dice" not in model_card("knees", METADATA, note, "abc"), "held-out cases say more"


def test_the_header_is_yaml_that_hugging_face_reads() -> None:
    header = front_matter(METADATA)
    assert header.startswith("---\n") and header.endswith("---\n")
    fields = yaml.safe_load(header.strip("-\n"))
    assert fields["license"] == "apache-2.0" and fields["library_name"] == "monai"
    assert {"monai", "mr", "synthetic-data"} <= set(fields["tags"])


@pytest.mark.parametrize(
    ("bundle", "task", "tags", "option"),
    [
        ("lidc_ldm", "unconditional-image-generation", ["ct", "synthetic-data"], "--num_volumes"),
        ("adni_gan", "unconditional-image-generation", ["mr", "synthetic-data"], "--num_volumes"),
        ("swin_unetr_finetune", "image-segmentation", ["mr", "segmentation"], "--dataset_dir"),
        ("swin_unetr_pretrain", "image-to-image", ["inpainting"], "--dataset_dir"),
    ],
)
def test_a_card_says_what_its_bundle_does(bundle: str, task: str, tags: list[str], option: str) -> None:
    metadata = json.loads((ROOT / "bundles" / bundle / "configs" / "metadata.json").read_text())
    fields = yaml.safe_load(front_matter(metadata).strip("-\n"))
    assert fields["pipeline_tag"] == task and fields["tags"] == ["monai", "medical", "3d", *tags]
    assert f"configs/inference.json {option} " in model_card(bundle, metadata, NOTE, "abc").replace("\n", " ")


@pytest.mark.slow
def test_the_source_archive_holds_the_package_and_bears_no_time_or_owner(tmp_path: Path) -> None:
    build_distributions(ROOT, tmp_path)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as source:
        members = source.getmembers()
    assert {(member.uid, member.uname, member.mtime) for member in members} == {(0, "", 315532800)}
    assert not [member.name for member in members if "/tests" in member.name or "/bundles" in member.name]
    assert [member.name for member in members if member.name.endswith("/medical_diffusion_components/py.typed")]
    assert len(list(tmp_path.glob("*.whl"))) == 1
