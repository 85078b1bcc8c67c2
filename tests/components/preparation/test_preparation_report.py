"""What the report of a preparation says, and what it must not say."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor

import nibabel as nib
import numpy as np
import pytest
from dicom_writing import write_series

from medical_diffusion_components.preparation.case_ids import short_hash
from medical_diffusion_components.preparation.preparation import Preparation, run_or_exit
from medical_diffusion_components.preparation.steps.load_scan import LoadScand
from medical_diffusion_components.preparation.steps.scale_to_range import ScaleToRanged

AFFINE = np.diag([1.0, 1, 2, 1])


def write_scan(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(0).normal(size=(12, 10, 8)).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels, AFFINE), path)


def prepare(tmp_path):
    steps = [LoadScand("image"), ScaleToRanged("image")]
    folders = (tmp_path / "raw", tmp_path / "out")
    return run_or_exit(lambda: Preparation(*folders, steps, lambda: ThreadPoolExecutor(1), max_refused_share=1.0))


def test_masks_of_one_value_are_left_aside_and_a_folder_of_nothing_else_is_an_error(tmp_path):
    (tmp_path / "raw").mkdir()
    nib.save(nib.Nifti1Image(np.zeros((12, 10, 8), np.uint8), AFFINE), tmp_path / "raw" / "spleen.nii.gz")
    with pytest.raises(SystemExit, match="no volume was made; the reasons are in .*report.md"):
        prepare(tmp_path)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [case["reason"] for case in report["cases"]] == ["one_value"] and report["refused_share"] == 0


def test_a_volume_without_a_number_is_left_aside_as_such(tmp_path):
    (tmp_path / "raw").mkdir()
    nib.save(nib.Nifti1Image(np.full((12, 10, 8), np.nan, np.float32), AFFINE), tmp_path / "raw" / "scan.nii.gz")
    with pytest.raises(SystemExit, match="no volume was made"):
        prepare(tmp_path)
    (case,) = json.loads((tmp_path / "out" / "report.json").read_text())["cases"]
    assert case["reason"] == "one_value" and "every voxel is nan" in case["text"]


@pytest.mark.parametrize(
    ("empty", "noted"),
    [(np.s_[:, :, 3:5], True), (np.s_[4], True), (np.s_[:, :, 6:], False), (np.s_[2:9, :, 3], False)],
)
def test_slices_that_a_conversion_lost_are_remarked_on(tmp_path, empty, noted):
    voxels = np.random.default_rng(0).normal(size=(12, 10, 8)).astype(np.float32)
    voxels[empty] = -1
    (tmp_path / "raw").mkdir()
    nib.save(nib.Nifti1Image(voxels, AFFINE), tmp_path / "raw" / "scan.nii.gz")
    prepare(tmp_path)
    (case,) = json.loads((tmp_path / "out" / "report.json").read_text())["cases"]
    assert case["outputs"][0]["notes"].get("empty_slices", False) is noted


def test_reports_hold_no_identifier_of_a_header(tmp_path):
    for name, number in (("a", 5), ("b", 5)):
        write_series(
            tmp_path / "raw" / name,
            np.random.default_rng(0).integers(0, 99, (12, 10, number)),
            np.diag([1.0, 1, 2, 1]),
            modality="MR",
            patient_id="MILLER^ANNA",
            study_uid="1.2.826.0.1.5",
            series_uid=f"1.2.826.0.1.6.{name == 'a':d}",
        )
    sorted((tmp_path / "raw" / "a").iterdir())[2].unlink()
    prepare(tmp_path)
    shown = (tmp_path / "out" / "report.md").read_text() + (tmp_path / "out" / "report.json").read_text()
    assert "missing_slices" in shown and short_hash("1.2.826.0.1.6.1") in shown
    assert "1.2.826" not in shown and "MILLER" not in shown and str(tmp_path) not in shown


def test_a_name_that_is_no_text_can_be_reported(tmp_path, capsys):
    write_scan(tmp_path / "raw" / "good.nii.gz")
    (tmp_path / "raw" / os.fsdecode(b"\xe4.nii.gz")).write_bytes(b"no")
    prepare(tmp_path)
    assert "\\udce4.nii.gz" in (tmp_path / "out" / "report.md").read_text()
    assert "1 refused" in capsys.readouterr().out
