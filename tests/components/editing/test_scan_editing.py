"""Edited scans: untouched outside the mask, drawn without a look at what was in it, and marked as what they are."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from scans_to_edit import AFFINE, SIZE, Edit, save

from medical_diffusion_components.cohorts import resolve_dataset
from medical_diffusion_components.data import is_edited, is_synthetic
from medical_diffusion_components.dicom_export.edited_series import EditedSeries
from medical_diffusion_components.diffusion import LatentDiffusionGenerator
from medical_diffusion_components.editing import (
    free_positions,
    read_scan,
    seam,
)
from medical_diffusion_components.evaluation import folder_cases
from medical_diffusion_components.networks import VQGAN
from medical_diffusion_components.reports import SyntheticVolumeWriter
from medical_diffusion_components.transforms import VolumeError


@pytest.mark.parametrize(("dtype", "slope"), [(np.int16, None), (np.int16, 0.37), (np.float32, None), (np.uint8, None)])
def test_outside_the_mask_every_bit_of_the_file_stays(
    edit: Edit, tmp_path: Path, voxels: np.ndarray, mask: np.ndarray, dtype: type, slope: float | None
) -> None:
    before = (voxels % 250).astype(dtype)
    scan, hole = save(tmp_path / "scan.nii.gz", before, slope), save(tmp_path / "hole.nii.gz", mask)
    (returned,) = edit().inpaint(scan, hole, [5])
    (file,) = (tmp_path / "edited").glob("*_edited.nii.gz")
    one, other = nib.load(scan), nib.load(file)
    stored, outside = other.dataobj.get_unscaled(), mask == 0
    assert stored.dtype == dtype and stored[outside].tobytes() == before[outside].tobytes()
    np.testing.assert_array_equal(other.get_fdata()[outside], one.get_fdata()[outside])
    np.testing.assert_array_equal(other.get_fdata(), returned)
    np.testing.assert_array_equal(other.affine, one.affine)
    assert (other.get_fdata() != one.get_fdata())[mask > 0].mean() > 0.9
    assert b"DOE" not in other.header.binaryblock


@pytest.mark.parametrize(
    ("dtype", "slope", "intercept"), [(np.int16, 2.0, 0.0), (np.int16, 1.0, -3.0), (np.uint8, 1.0, 5)]
)
def test_what_is_drawn_is_stored_as_the_nearest_number_of_the_files_scaling(
    edit: Edit, tmp_path: Path, voxels: np.ndarray, mask: np.ndarray, dtype: type, slope: float, intercept: float
) -> None:
    """Wherever the intensities lie; beyond the type's numbers, the last one."""
    image = nib.Nifti1Image((voxels % 250).astype(dtype), AFFINE)
    image.header.set_slope_inter(slope, intercept)
    nib.save(image, tmp_path / "scan.nii.gz")
    scan = read_scan(tmp_path / "scan.nii.gz")
    inside = np.linspace(-50_000, 70_000, int(mask.sum()))
    inside[::2] = np.linspace(7, 90, len(inside[::2]))
    returned = edit().writer.region(scan, mask > 0, tmp_path / "scan.nii.gz", inside, 0, {})
    (file,) = (tmp_path / "edited").glob("*_edited.nii.gz")
    limits = np.iinfo(dtype)
    nearest = np.rint((inside - intercept) / slope).clip(limits.min, limits.max) * slope + intercept
    np.testing.assert_allclose(nib.load(file).get_fdata()[mask > 0], nearest)
    np.testing.assert_allclose(returned[mask > 0], nearest)
    np.testing.assert_array_equal(nib.load(file).get_fdata()[mask == 0], scan.values[mask == 0])


def test_what_is_drawn_stays_within_the_intensities_that_the_model_knows(
    edit: Edit, tmp_path: Path, voxels: np.ndarray, mask: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "medical_diffusion_components.editing.scan_editing.blended", lambda *_: np.linspace(-9e3, 9e3, 60)
    )
    scan, hole = save(tmp_path / "scan.nii.gz", voxels.astype(np.float32)), save(tmp_path / "hole.nii.gz", mask)
    (after,) = edit().inpaint(scan, hole, [0])
    known = voxels[mask == 0]
    np.testing.assert_allclose(after[mask > 0], np.linspace(-9e3, 9e3, 60).clip(known.min(), known.max()), rtol=1e-6)


def test_the_note_has_the_seam_of_the_result_and_a_longer_blend_changes_it(
    edit: Edit, tmp_path: Path, voxels: np.ndarray, mask: np.ndarray
) -> None:
    scan, hole = save(tmp_path / "scan.nii.gz", voxels.astype(np.float32)), save(tmp_path / "hole.nii.gz", mask)
    results = {}
    for length in (None, 3.0, 30.0):
        (results[length],) = edit(blend_length=length).inpaint(scan, hole, [0])
        (file,) = (tmp_path / "edited").glob("*_edited.json")
        note = json.loads(file.read_text())
        assert note["blend_length"] == length
        assert note["seam"]["across"] == pytest.approx(seam(results[length], mask > 0).across, rel=1e-5)
    assert not np.allclose(results[3.0], results[30.0])
    voxel = float(np.mean((2.0, 1.5, 3.0)))
    (again,) = edit(blend_length=voxel).inpaint(scan, hole, [0])
    np.testing.assert_allclose(again, results[None], rtol=1e-6, err_msg="none is a voxel's mean side")


def test_both_affines_of_the_file_stay(edit: Edit, tmp_path: Path, voxels: np.ndarray, mask: np.ndarray) -> None:
    image = nib.Nifti1Image(voxels, AFFINE)
    image.set_qform(AFFINE + np.eye(4, k=3) * 7, 2)
    image.set_sform(AFFINE, 1)
    nib.save(image, tmp_path / "scan.nii.gz")
    edit().inpaint(tmp_path / "scan.nii.gz", save(tmp_path / "hole.nii.gz", mask), [0])
    (file,) = (tmp_path / "edited").glob("*_edited.nii.gz")
    for kind in ("get_qform", "get_sform"):
        (one, code), (other, other_code) = (
            getattr(nib.load(p), kind)(coded=True) for p in (tmp_path / "scan.nii.gz", file)
        )
        np.testing.assert_allclose(one, other)
        assert code == other_code


def test_each_channel_of_the_latent_has_a_deviation_of_its_own() -> None:
    """A change of 0.5 is far below the deviation of one channel, 10, and far above that of the other, 0.1."""

    class Stage(torch.nn.Module):
        compression = (1, 1, 1)

        def encode_stage_2_inputs(self, volume: torch.Tensor) -> torch.Tensor:
            return torch.cat([10 * volume, 0.1 * volume], 1) + self.change * (volume > 2)

    stage, mask = Stage(), torch.zeros(4, 4, 4, dtype=torch.bool)
    plain = torch.randn(1, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    changed = plain.clone()
    changed[..., 2, 2, 2] += 10
    for change, far in ((torch.tensor([-100.0, -1.0]), False), (torch.tensor([-100.0, -0.5]), True)):
        stage.change = change.view(1, 2, 1, 1, 1)
        free = free_positions(stage, [plain, changed], mask, 1.0)
        assert bool(free[2, 2, 2]) is far and free.sum() == int(far)


def test_a_scan_on_a_grid_of_its_own_changes_in_the_mask_alone(edit: Edit, tmp_path: Path) -> None:
    before = np.random.default_rng(1).normal(size=(40, 37, 33)).astype(np.float32)
    hole = np.zeros(before.shape, np.uint8)
    hole[18:23, 17:21, 15:18] = 1
    scan, mask = save(tmp_path / "scan.nii.gz", before), save(tmp_path / "hole.nii.gz", hole)
    (after,) = edit().inpaint(scan, mask, [0])
    changed = after != before
    assert not changed[hole == 0].any() and changed[hole > 0].all()
    hole[0, 0, 0] = 1
    with pytest.raises(VolumeError, match=r"hole.nii.gz: expected a mask within the 16x12x20 voxels of .* --centre"):
        edit().inpaint(scan, save(tmp_path / "hole.nii.gz", hole), [0])


def test_what_stood_in_the_region_has_no_effect_and_one_seed_gives_one_result(
    edit: Edit, tmp_path: Path, voxels: np.ndarray, mask: np.ndarray
) -> None:
    hole = save(tmp_path / "hole.nii.gz", mask)
    one = edit().inpaint(save(tmp_path / "scan.nii.gz", voxels), hole, [0, 1])
    voxels[mask > 0] = 32000
    again = edit().inpaint(save(tmp_path / "scan.nii.gz", voxels), hole, [0])
    np.testing.assert_array_equal(one[0], again[0])
    assert (one[0] != one[1]).any()


def test_the_note_and_the_name_say_edited_and_nothing_takes_it_for_synthetic_or_real(
    edit: Edit, tmp_path: Path, voxels: np.ndarray, mask: np.ndarray
) -> None:
    scan = save(tmp_path / "doe_jane.nii.gz", voxels)
    edit().inpaint(scan, save(tmp_path / "hole.nii.gz", mask), [0, 1, 2])
    folder = tmp_path / "edited"
    files = sorted(folder.glob("*.nii.gz"))
    assert len(files) == 3 and all(re.fullmatch(r"inpaint_[0-9a-f]{12}_00000\d_edited.nii.gz", f.name) for f in files)
    text = files[0].with_name(files[0].name.replace(".nii.gz", ".json")).read_text()
    note = json.loads(text)
    assert note["synthetic"] is False and set(note["edited_from"]) == {"image_sha256", "mask_sha256"}
    assert "doe" not in text.lower() and str(tmp_path) not in text
    assert "doe" not in (folder / "page.html").read_text().lower()
    assert all(is_edited(file) and not is_synthetic(file) for file in files)
    with pytest.raises(ValueError, match="were edited from real scans"):
        resolve_dataset(str(folder), str(tmp_path), 3, SIZE, allow_synthetic=True)
    with pytest.raises(ValueError, match="was edited from a real scan: move it out"):
        folder_cases(folder)
    with pytest.raises(ValueError, match="no note names as synthetic"):
        SyntheticVolumeWriter(folder, tmp_path / "model.pt", {}).prepare()


@pytest.mark.parametrize("output_format", ["nifti", "dicom"])
def test_a_mask_of_the_whole_scan_is_refused_and_one_that_leaves_a_row_is_not(
    output_format: str, edit: Edit, tmp_path: Path, voxels: np.ndarray
) -> None:
    scan, whole = save(tmp_path / "scan.nii.gz", voxels), np.ones(voxels.shape, np.uint8)
    with pytest.raises(
        VolumeError, match=r"all\.nii\.gz: the mask covers the whole scan, so nothing of it would be left"
    ):
        edit(output_format=output_format).inpaint(scan, save(tmp_path / "all.nii.gz", whole), [0])
    assert not (tmp_path / "edited").exists()
    whole[3, 4] = 0
    (after,) = edit(output_format=output_format).inpaint(scan, save(tmp_path / "most.nii.gz", whole), [0])
    np.testing.assert_array_equal(after[3, 4], voxels[3, 4])
    assert len(list((tmp_path / "edited").iterdir())) == 3, "the result, its note and the page"


def test_the_dicom_form_is_derived_and_not_synthetic(
    edit: Edit, tmp_path: Path, voxels: np.ndarray, mask: np.ndarray
) -> None:
    scan = save(tmp_path / "doe_jane.nii.gz", voxels)
    (after,) = edit(output_format="dicom").inpaint(scan, save(tmp_path / "hole.nii.gz", mask), [0])
    (folder,) = (path for path in (tmp_path / "edited").iterdir() if path.is_dir())
    assert folder.name.endswith("_edited")
    images = [pydicom.dcmread(file) for file in sorted(folder.glob("*.dcm"))]
    for image in images:
        assert image.ImageType[0] == "DERIVED" and "EDITED" in image.ImageType
        assert "SyntheticData" not in image and "SYNTHETIC" not in str(image).upper().replace("SYNTHETIC DATA", "")
        assert "Edited from a real scan" in image.DerivationDescription and "DOE" not in str(image).upper()
    read, affine = EditedSeries("MR").load(folder, {})
    places = nib.affines.apply_affine(np.linalg.inv(AFFINE) @ affine, np.moveaxis(np.indices(read.shape), 0, -1))
    np.testing.assert_array_equal(read, after[tuple(np.moveaxis(np.rint(places).astype(int), -1, 0))])


@pytest.mark.parametrize(("made", "message"), [
    (lambda voxels: voxels / 500 - 1, r"at least 256 grey levels .* in \[-1, 0.998\]; write NIfTI"),
    (lambda voxels: voxels + 32_000, r"whole numbers from -32768 to 32767.* in \[32000, 32999\]"),
    (lambda voxels: voxels, "expected axes at right angles"),
])  # fmt: skip
@pytest.mark.parametrize("operation", ["inpaint", "vary", "interpolate"])
def test_what_dicom_cannot_hold_is_refused_by_name_before_anything_is_drawn(
    edit: Edit, tmp_path: Path, voxels: np.ndarray, mask: np.ndarray, operation: str, made: Callable, message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(VQGAN, "encode_stage_2_inputs", lambda *_: pytest.fail("work was done before"))
    affine = AFFINE.copy()
    affine[0, 2] = 0.5 if "angles" in message else 0
    paths = {"image": tmp_path / "scan.nii.gz", "mask": tmp_path / "hole.nii.gz"}
    nib.save(nib.Nifti1Image(made(voxels.astype(np.float32)), affine), paths["image"])
    nib.save(nib.Nifti1Image(mask, affine), paths["mask"])
    request = {
        "inpaint": {**paths, "seeds": [0]},
        "vary": {"image": paths["image"], "strengths": [0.5], "seeds": [0]},
        "interpolate": {
            "image": paths["image"], "second_image": paths["image"], "weights": [0], "strength": 0.5, "seeds": [0]
        },
    }  # fmt: skip
    with pytest.raises(VolumeError, match=f"scan.nii.gz: .*{message}"):
        edit(output_format="dicom").run(operation, request)
    assert not (tmp_path / "edited").exists()


def test_what_of_a_scan_lies_beyond_the_limits_counts_where_it_stays(
    edit: Edit, tmp_path: Path, voxels: np.ndarray, mask: np.ndarray
) -> None:
    """A voxel of 40,000 cannot be written, but it is no part of a variation, nor is it if the mask covers it."""
    values = voxels.astype(np.float32)
    for place, kept in (((6, 7, 8), False), ((0, 0, 0), True)):
        values[place] = 40_000
        scan, hole = save(tmp_path / "scan.nii.gz", values), save(tmp_path / "hole.nii.gz", mask)
        made = edit(output_format="dicom", limits=[0, 999])
        if kept:
            with pytest.raises(VolumeError, match=r"scan.nii.gz: DICOM holds .*\[0, 40000\]"):
                made.inpaint(scan, hole, [0])
        else:
            made.inpaint(scan, hole, [0])
        made.vary(scan, [0.0], [0])


def test_a_faint_variation_of_a_scan_that_dicom_can_hold_is_written(edit: Edit, tmp_path: Path) -> None:
    writer = edit(output_format="dicom").writer
    note = {"synthetic": False, "edited_from": {"image_sha256": "0"}, "operation": "vary", "seed": 0,
            "weights_sha256": "1", "versions": {"medical-diffusion-bundles": "0"}}  # fmt: skip
    faint = np.linspace(10, 90, 60).reshape(3, 4, 5)
    writer.format.save(tmp_path / "series", faint, AFFINE, {**note, "limits": [0.0, 300.0]})
    assert len(list((tmp_path / "series").iterdir())) == 5
    with pytest.raises(ValueError, match=r"at least 256 grey levels .*\[10, 90\]"):
        writer.format.save(tmp_path / "other", faint, AFFINE, note)


def test_variations_go_from_the_reconstruction_outwards(
    edit: Edit, generator: LatentDiffusionGenerator, tmp_path: Path, voxels: np.ndarray
) -> None:
    scan = save(tmp_path / "scan.nii.gz", voxels)
    rows = edit().vary(scan, [0.0, 0.5, 1.0], [0, 1])
    assert [row["strength"] for row in rows] == [0.0, 0.0, 0.5, 0.5, 1.0, 1.0]
    seen = torch.from_numpy((voxels.transpose(1, 0, 2)[:, ::-1] / 999 * 2 - 1).astype(np.float32).copy())[None, None]
    with torch.no_grad():
        same = generator.first_stage.decode_stage_2_outputs(generator.first_stage.encode_stage_2_inputs(seen))
    low, high = float(voxels.min()), float(voxels.max())
    file = sorted((tmp_path / "edited").glob("vary_*_00_edited.nii.gz"))[0]
    expected = (same[0, 0].numpy() + 1) / 2 * (high - low) + low
    assert np.mean(np.abs(nib.load(file).get_fdata() - expected) > 5) < 0.02, (
        "a position between two codes may go either way"
    )
    page = (tmp_path / "edited" / "page.html").read_text()
    assert "Distance from the scan" in page and "real scan" in page and not re.search(r'(src|href)="https?:', page)


def test_volumes_between_two_scans_name_both(edit: Edit, tmp_path: Path, voxels: np.ndarray) -> None:
    scans = [save(tmp_path / f"scan_{n}.nii.gz", np.roll(voxels, n, 0)) for n in (0, 3)]
    made = edit().interpolate(*scans, [0.0, 0.5, 1.0], 0.5, [0])
    assert len(made) == 3 and not np.array_equal(made[0], made[2])
    notes = [json.loads(file.read_text()) for file in sorted((tmp_path / "edited").glob("*.json"))]
    assert [set(note["edited_from"]) for note in notes] == [{"image_sha256", "other_sha256"}] * 3
    with pytest.raises(ValueError, match="expected a NIfTI file as --second_image, got none"):
        edit().interpolate(scans[0], None, [0.5], 0.5, [0])


def test_requests_are_checked(edit: Edit) -> None:
    with pytest.raises(ValueError, match="operation must be one of inpaint, vary, interpolate; got 'remove'"):
        edit().run("remove", {})
    with pytest.raises(ValueError, match=r"expected two ascending intensities as limits, got \[3, 1\]"):
        edit(limits=[3, 1])


def test_positions_that_the_region_reaches_are_free(generator: LatentDiffusionGenerator) -> None:
    mask = torch.zeros(SIZE, dtype=torch.bool)
    mask[5, 6, 7] = True
    plain = torch.zeros(1, 1, *SIZE)
    changed = torch.where(mask, 1.0, plain)
    free = free_positions(generator.first_stage, [plain + torch.linspace(-1, 1, 20), changed], mask, 1e9)
    assert free.nonzero().tolist() == [[2, 3, 3]], "no tolerance is exceeded: the voxel's own position alone"
    noise = torch.randn(1, 1, *SIZE, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    contents = [torch.where(mask, value, noise) for value in (-1.0, 1.0)]
    near, far = (free_positions(generator.first_stage, contents, mask, tolerance) for tolerance in (0.3, 1e-2))
    assert free.sum() < near.sum() < far.sum(), "a smaller tolerance frees more"
    with pytest.raises(ValueError, match="expected two contents and a positive tolerance, got 1 and 0.2"):
        free_positions(generator.first_stage, [noise], mask)
