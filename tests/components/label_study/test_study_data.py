"""What a label study would trip over hours later is named before its first training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medical_diffusion_components.label_study import check_study_data

SIZE = (8, 7, 6)
CLASSES = {"background": 0, "organ": 1, "lesion": 2}
Spoil = Callable[[Path], object]


def image(number: int, size: tuple[int, ...] = SIZE) -> np.ndarray:
    return np.random.default_rng(number).normal(size=size).astype(np.float32)


def save(path: Path, voxels: np.ndarray, spacing: float = 2.0) -> None:
    path.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, np.diag([spacing, spacing, spacing, 1.0])), path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five patients with labels, and as many synthetic volumes in ``synthetic``."""
    entries = []
    for number in range(5):
        save(tmp_path / "data" / f"v{number}.nii", image(number))
        save(tmp_path / "data" / f"l{number}.nii", (image(number) > 0).astype(np.uint8) + (image(number) > 1))
        save(tmp_path / "synthetic" / f"s{number}.nii", image(9 + number))
        entries.append({"image": f"v{number}.nii", "label": f"l{number}.nii", "case_id": f"c{number}"})
    listing = {"training": entries[:3], "validation": entries[3:4], "test": entries[4:]}
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(listing))
    return tmp_path


def check(folder: Path) -> None:
    check_study_data(str(folder / "data"), CLASSES, synthetic_dir=str(folder / "synthetic"))


def without_label(folder: Path) -> None:
    path = folder / "data" / "dataset.json"
    listing = json.loads(path.read_text())
    del listing["test"][0]["label"]
    path.write_text(json.dumps(listing))


WRONG: dict[str, tuple[Spoil, str]] = {
    "no label in the test": (without_label, "1 of 1 test cases have no label, the first is c4"),
    "another size": (lambda f: save(f / "data/l3.nii", np.zeros((8, 7, 5), np.uint8)), "case c3: .*8x7x5 voxels"),
    "fractions": (lambda f: save(f / "data/l1.nii", image(1)), "case c1: .*label values must be whole numbers"),
    "another class": (lambda f: save(f / "data/l4.nii", np.full(SIZE, 7, np.uint8)), "case c4: .*expected classes"),
    "another place": (lambda f: save(f / "data/l0.nii", np.zeros(SIZE, np.uint8), 3.0), "case c0: .*lies elsewhere"),
    "two channels": (lambda f: save(f / "data/v2.nii", image(2, (*SIZE, 2))), r"v2.nii: .*shape \(8, 7, 6, 2\)"),
    "synthetic, two channels": (lambda f: save(f / "synthetic/s2.nii", image(2, (*SIZE, 2))), "s2.nii: .*one 3D"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_training_would_refuse_is_refused_before_it(kind: str, folder: Path) -> None:
    check(folder)
    spoil, message = WRONG[kind]
    spoil(folder)
    with pytest.raises(ValueError, match=message):
        check(folder)


def test_a_class_of_no_training_label_is_a_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    check(folder)
    assert not caplog.records
    for number in range(3):
        save(folder / "data" / f"l{number}.nii", np.ones(SIZE, np.uint8))
    check(folder)
    assert "no voxel of background, lesion is in any of 3 training labels" in caplog.text


def test_real_volumes_among_synthetic_ones_are_counted(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(folder / "synthetic" / "s2.nii", image(3))
    check(folder)
    assert "1 of 5 volumes in --synthetic_dir" in caplog.text and "the first is s2: no generator" in caplog.text
