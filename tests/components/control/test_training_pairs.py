"""What a control branch cannot learn from is refused, or said, before it is trained."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medical_diffusion_components.control import MaskChannels
from medical_diffusion_components.control.training_pairs import (
    RandLoadPaird,
    cache_masks,
    label_classes,
    one_process,
    paired_cases,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three training cases, one of them with a label map, and two for validation."""
    for name in ("a", "b", "c", "d", "e", "a_label"):
        nib.save(nib.Nifti1Image(np.zeros((4, 5, 6), np.float32), np.eye(4)), tmp_path / f"{name}.nii.gz")
    cases: list[dict[str, Any]] = [
        {"image": f"{name}.nii.gz", "case_id": name, "patient_id": name} for name in ("a", "b", "c", "d", "e")
    ]
    cases[0]["label"] = "a_label.nii.gz"
    (tmp_path / "dataset.json").write_text(json.dumps({"training": cases[:3], "validation": cases[3:]}))
    return tmp_path


def test_cases_without_a_label_map_are_counted_and_a_split_of_such_cases_is_refused(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    assert [case["case_id"] for case in paired_cases(folder, "training")] == ["a"]
    assert "2 of the 3 training cases have no label map and are left out" in caplog.text
    with pytest.raises(ValueError, match=f"{folder}: none of the 2 validation cases has a label map: list them"):
        paired_cases(folder, "validation")


def test_classes_are_those_of_the_command_or_of_the_datalist(folder: Path) -> None:
    with pytest.raises(ValueError, match="dataset.json has no table of labels: give --classes"):
        label_classes(folder)
    content = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**content, "labels": {"1": "breast", "0": "background"}}))
    assert list(label_classes(folder).items()) == [("background", 0), ("breast", 1)]
    assert list(label_classes(folder, {"fat": 1, "air": 0})) == ["air", "fat"], "the command comes first"
    for classes in ({"background": 0, "tumour": 2}, {"background": 0}, {"breast": 1, "tumour": 2}):
        with pytest.raises(ValueError, match=r"numbered 0 \(background\), 1, 2, ... without gaps, got"):
            label_classes(folder, classes)


def test_what_a_mask_cannot_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="expected at most 256 classes, got 257"):
        cache_masks([], [], {str(value): value for value in range(257)}, "RAS", (4, 4, 4))
    with pytest.raises(ValueError, match="a background and at least one class, got 1 classes"):
        MaskChannels(1)
    with pytest.raises(ValueError, match="a largest distance in mm above 0, or none, got 0"):
        MaskChannels(3, 0)


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    one_process("train_masks.yaml")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(
        ValueError, match="train_masks.yaml runs in one process, torchrun has started 3: run it without"
    ):
        one_process("train_masks.yaml")


@pytest.mark.parametrize("flip_axis", [0, 2])
def test_a_mask_is_mirrored_with_its_latent(flip_axis: int, tmp_path: Path) -> None:
    latents, labels = np.arange(2.0), np.random.default_rng(0).integers(0, 3, (4, 5, 6), np.uint8)
    np.save(tmp_path / "a.npy", np.broadcast_to(latents[:, None, None, None, None], (2, 3, 2, 5, 3)))
    np.save(tmp_path / "mask.npy", labels)
    load = RandLoadPaird("image", flip_axis=flip_axis).set_random_state(0)
    seen = set()
    for _ in range(20):
        pair = load({"image": str(tmp_path / "a.npy"), "mask": str(tmp_path / "mask.npy")})
        mirrored = bool(pair["image"].unique())
        np.testing.assert_array_equal(pair["mask"], np.flip(labels, flip_axis) if mirrored else labels)
        seen.add(mirrored)
    assert seen == {True, False}
