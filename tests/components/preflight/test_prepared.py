"""The check of a folder to train on, without a bundle: sizes, splits, memory."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medical_diffusion_components.data import SPLITS
from medical_diffusion_components.preflight import TrainingCheck, prepared
from medical_diffusion_components.preflight.survey import Survey
from medical_diffusion_components.transforms import VolumeError


def test_sizes_are_meant_along_the_axes_of_the_training(tmp_path: Path) -> None:
    """Of axes that point forward, up and right, 10, 20 and 30 voxels are 30 to the right, 10 forward and 20 up."""
    for wanted, said in (("image_size", "30 x 10 x 20"), ("min_size", "at least 30 x 10 x 20")):
        check, survey = TrainingCheck(tmp_path, tmp_path, axcodes="ASR", **{wanted: [10, 20, 30]}), Survey()
        check._check_size("good", (30, 10, 20), survey)
        check._check_size("low", (30, 10, 19), survey)
        assert survey.refused == {"low": f"expected size {said} voxels (right, front, up), got 30 x 10 x 19"}


def test_one_scan_in_two_splits_and_what_a_transform_refuses_are_named(tmp_path: Path) -> None:
    rng, listed = np.random.default_rng(0), {}
    scans = [rng.normal(size=(12, 13, 14)).astype(np.float32) for _ in range(3)]
    for number, (split, scan) in enumerate(zip([*SPLITS, "test"], [*scans, scans[0]])):
        nib.save(nib.Nifti1Image(scan, np.eye(4)), tmp_path / f"c{number}.nii")
        case = {"image": f"c{number}.nii", "case_id": f"c{number}", "patient_id": f"p{number}"}
        listed.setdefault(split, []).append(case)
    (tmp_path / "dataset.json").write_text(json.dumps(listed))

    def refuse(case: dict[str, Any]) -> dict[str, Any]:
        if case["case_id"] == "c1":
            raise VolumeError(f"{tmp_path}/c1.nii: too flat")
        return case

    report = TrainingCheck(tmp_path, tmp_path / "report", [refuse], look_seconds=60.0).run()
    assert report.survey.refused == {"c1": "c1.nii: too flat"}
    assert list(report.short) == ["one of c0 and c3: they hold the same scan, in two splits"]


def test_what_is_found_counts_volumes_patients_and_labels(tmp_path: Path) -> None:
    thrice = [{"patient_id": "p", "label": "x"}, {"patient_id": "p"}, {"patient_id": "p"}]
    assert TrainingCheck(tmp_path, tmp_path)._found({"training": thrice, "test": []}) == {
        "volumes": {"training": 3, "test": 0},
        "patients": {"training": 1, "test": 0},
        "labels": 1,
    }


def test_a_step_that_needs_more_memory_than_is_free_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda _: "MemTotal: 99 kB\nMemAvailable:   4000000 kB\n")
    assert prepared.available_gb() == 4.0  # 4.096, rounded down
    monkeypatch.setattr(prepared.torch.cuda, "is_available", lambda: False)
    survey = Survey()
    survey.facts = {name: SimpleNamespace(voxels=voxels) for name, voxels in (("a", 5e8), ("b", 1))}
    cases = {"training": [{"case_id": "a"}], "validation": [{"case_id": "b"}]}
    room, short = TrainingCheck(tmp_path, tmp_path, training={"first stage": 4.0, "diffusion": 5.0})._room(
        cases, survey
    )
    assert room["training volumes in memory, if all are kept"] == "2.00 GB"
    assert short == ["a smaller batch: a step of the diffusion needs 5.0 GB, 4.0 are free"]
