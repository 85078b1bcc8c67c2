"""What is in a folder of volumes that somebody else has made, and what is said of it."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from medical_diffusion_components.evaluation import folder_cases
from medical_diffusion_components.evaluation.volume_sets import set_remarks


def write(path: Path, seed: int, affine: np.ndarray | None = None, voxels: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).normal(size=(4, 5, 6)).astype(np.float32) if voxels is None else voxels
    nib.save(nib.Nifti1Image(values, np.eye(4) if affine is None else affine), path)
    return path


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for name, seed in (("samples", 0), ("held_out", 10), ("training", 20)):
        for number in range(3):
            write(tmp_path / name / f"{number}.nii", seed + number)
    return tmp_path


def remarks(folder: Path) -> list[str]:
    cases = {name: folder_cases(folder / name) for name in ("samples", "held_out", "training")}
    return set_remarks("synthetic", cases["samples"], cases["held_out"], cases["training"])


def test_a_good_folder_has_no_remark(folders: Path) -> None:
    assert remarks(folders) == []


@pytest.mark.parametrize(("name", "seed"), [("held_out", 10), ("training", 22)])
def test_real_volumes_among_samples_are_named(folders: Path, name: str, seed: int) -> None:
    write(folders / "samples" / "x" / "copy.nii", seed)
    (remark,) = remarks(folders)
    place = [case["case_id"] for case in folder_cases(folders / "samples")].index("x/copy.nii") + 1
    said = f"1 of the synthetic volumes are scans of the real data, the first is number {place} in the order of their names"
    assert remark.startswith(said) and "copy.nii" not in remark


@pytest.mark.parametrize("place", ["held_out", "training"])
def test_a_mirrored_and_rescaled_copy_of_a_real_volume_is_named(folders: Path, place: str) -> None:
    voxels = gaussian_filter(np.random.default_rng(5).normal(size=(24, 22, 20)), 1).astype(np.float32)
    write(folders / place / "large.nii", 0, voxels=voxels)
    write(folders / "samples" / "x" / "copy.nii", 0, voxels=voxels[::-1] * 300 + 40)
    (remark,) = remarks(folders)
    place = [case["case_id"] for case in folder_cases(folders / "samples")].index("x/copy.nii") + 1
    said = f"1 of the synthetic volumes are scans of the real data, the first is number {place} in the order of their names"
    assert remark.startswith(said) and "copy.nii" not in remark


def test_repeated_volumes_are_counted(folders: Path) -> None:
    for name in "ab":
        write(folders / "samples" / f"{name}.nii", 1)
    assert remarks(folders) == ["2 of the synthetic volumes are the same file as another one"]


@pytest.mark.parametrize(("length", "told"), [(1.2, False), (3.0, True)])
def test_another_spacing_is_said_wherever_the_axes_point(folders: Path, length: float, told: bool) -> None:
    turned = np.diag([length, 1.0, 1.0, 1.0])[:, [1, 0, 2, 3]]
    for number in range(3):
        write(folders / "samples" / f"{number}.nii", number, turned)
    found = remarks(folders)
    assert (found != []) is told
    if told:
        assert found[0].startswith("synthetic volumes have voxels of 3 x 1 x 1 mm, held-out ones of 1 x 1 x 1 mm")


@pytest.mark.parametrize("sidecar", ["[1, 2]", "{", '{"conditions": "none"}'])
def test_a_file_of_another_program_beside_a_volume_is_no_note(folders: Path, sidecar: str) -> None:
    (folders / "samples" / "0.json").write_text(sidecar)
    (folders / "samples" / "1.json").write_text(json.dumps({"conditions": {"age": 60}}))
    assert [case.get("conditions") for case in folder_cases(folders / "samples")] == [None, {"age": 60}, None]


def test_label_maps_are_no_samples(folders: Path, caplog: pytest.LogCaptureFixture) -> None:
    label = np.zeros((4, 5, 6), np.uint8)
    label[1:3, 1:3] = 1
    write(folders / "samples" / "0_seg.nii", 0, voxels=label)
    assert len(folder_cases(folders / "samples")) == 3
    assert "1 label maps in" in caplog.text and "0_seg.nii" in caplog.text
