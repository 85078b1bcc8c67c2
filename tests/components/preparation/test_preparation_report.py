"""What the report of a preparation says, and what it must not say."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor

import nibabel as nib
import numpy as np
import pytest
import torch
from dicom_writing import write_series
from monai.data import MetaTensor
from small_preparations import raw_folder

from medical_diffusion_components.preparation.appearance import remarks_on_picture
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


def picture(change=lambda voxels: voxels, spacing=(1.0, 1, 2)):
    """Remarks on a smooth head of (24, 20, 16) voxels that was changed."""
    grid = np.meshgrid(*(np.linspace(-1, 1, n) for n in (24, 20, 16)), indexing="ij")
    head = np.where(sum(x**2 for x in grid) < 0.7, 100 + 50 * np.sin(4 * grid[0] * grid[1] + 3 * grid[2]), 0.0)
    voxels = change(head.astype(np.float32))
    return remarks_on_picture(MetaTensor(torch.from_numpy(voxels.copy())[None], affine=np.diag([*spacing, 1.0])))


def filled(where):
    def change(voxels):
        voxels[where] = 0
        return voxels

    return change


@pytest.mark.parametrize(
    ("where", "noted"),
    [
        (np.s_[:, :, 7:9], ["empty_slices"]),
        (np.s_[12], ["empty_slices"]),
        (np.s_[:, :, 9:], ["cut_by_empty_slices"]),
        (np.s_[:, :, :8], ["cut_by_empty_slices"]),
        (np.s_[:, :, 14:], []),  # where it is narrow
        (np.s_[:, 12:], []),  # columns, which scanners pad to a square
        (np.s_[6:18, :, 7], []),
    ],
)
def test_slices_that_a_conversion_or_a_download_lost_are_remarked_on(where, noted):
    assert picture(filled(where)) == noted


def test_slices_of_voxels_as_long_each_way_may_end_anywhere():
    assert picture(filled(np.s_[:, :, 9:]), (1.0, 1, 1)) == []


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_slice_that_is_there_twice_is_remarked_on(axis):
    assert picture(lambda voxels: np.insert(voxels, 8, voxels.take(8, axis), axis)) == ["repeated_slices"]


def test_noise_is_remarked_on_and_a_noisy_head_is_not():
    rng = np.random.default_rng(0)
    assert picture(lambda voxels: rng.normal(100, 10, voxels.shape)) == ["looks_like_noise"]
    assert picture(lambda voxels: np.abs(rng.normal(0, 10, voxels.shape))) == ["looks_like_noise"]
    assert picture(lambda voxels: np.round(voxels * 250).astype(np.int16).byteswap() / 1.0) == ["looks_like_noise"]
    assert picture(lambda voxels: voxels + rng.normal(0, 40, voxels.shape)) == []


def test_what_the_picture_shows_reaches_the_report(tmp_path, capsys):
    write_scan(tmp_path / "raw" / "scan.nii.gz")
    prepare(tmp_path)
    (case,) = json.loads((tmp_path / "out" / "report.json").read_text())["cases"]
    assert case["outputs"][0]["notes"]["looks_like_noise"] is True
    assert "Noticed: looks_like_noise in 1 of the volumes." in capsys.readouterr().out


def test_numbers_that_float32_rounds_to_few_are_not_called_labels(tmp_path):
    (tmp_path / "raw").mkdir()
    for name, offset, factor in (("offset", 1e9, 1), ("huge", 0, 1e300)):
        voxels = np.random.default_rng(0).integers(0, 50, (12, 10, 8)) * factor + offset
        nib.save(nib.Nifti1Image(voxels.astype(np.float64), AFFINE), tmp_path / "raw" / f"{name}.nii")
    with pytest.raises(SystemExit, match="no volume was made"):
        prepare(tmp_path)
    for case in json.loads((tmp_path / "out" / "report.json").read_text())["cases"]:
        assert case["status"] == "refused" and "expected intensities up to 1.68e+07" in case["text"]


@pytest.mark.parametrize("root", ["1.2.826.0.1.6.", "2.25.826000000016"])  # 2.25: of a UUID, with two dots alone
def test_reports_hold_no_identifier_of_a_header(tmp_path, root):
    for name, number in (("a", 5), ("b", 5)):
        write_series(
            tmp_path / "raw" / name,
            np.random.default_rng(0).integers(0, 99, (12, 10, number)),
            np.diag([1.0, 1, 2, 1]),
            modality="MR",
            patient_id="MILLER^ANNA",
            study_uid="1.2.826.0.1.5",
            series_uid=f"{root}{name == 'a':d}",
        )
    sorted((tmp_path / "raw" / "a").iterdir())[2].unlink()
    prepare(tmp_path)
    shown = (tmp_path / "out" / "report.md").read_text() + (tmp_path / "out" / "report.json").read_text()
    assert "missing_slices" in shown and short_hash(f"{root}1") in shown
    assert "1.2.826" not in shown and root not in shown and "MILLER" not in shown and str(tmp_path) not in shown


def test_a_name_that_is_no_text_can_be_reported(tmp_path, capsys):
    write_scan(tmp_path / "raw" / "good.nii.gz")
    (tmp_path / "raw" / os.fsdecode(b"\xe4.nii.gz")).write_bytes(b"no")
    prepare(tmp_path)
    assert "\\udce4.nii.gz" in (tmp_path / "out" / "report.md").read_text()
    assert "1 refused" in capsys.readouterr().out


def test_the_report_holds_nothing_by_which_a_scan_could_be_recognised(tmp_path):
    raw_folder(tmp_path)
    prepare(tmp_path)
    outputs = [
        output
        for case in json.loads((tmp_path / "out" / "report.json").read_text())["cases"]
        for output in case["outputs"]
    ]
    assert outputs and not any({"signature", "landmarks"} & output.keys() for output in outputs)
    kept = json.loads(next((tmp_path / "out" / "cases").iterdir()).read_text())["outputs"]
    assert all({"signature", "landmarks"} <= output.keys() for output in kept), "they stay with the volumes"
