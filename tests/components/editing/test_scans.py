"""Scans, masks and the model's grid: exact where grids agree, refused where they do not."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medical_diffusion_components.editing import model_grid, read_mask, read_scan
from medical_diffusion_components.editing.scans import Grid
from medical_diffusion_components.transforms import VolumeError

AFFINE = np.array([[0.0, 2.0, 0, -7], [-1.5, 0, 0, 3], [0, 0, 3.0, 11], [0, 0, 0, 1]])  # axes PRS


def save(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


@pytest.fixture
def scan_file(tmp_path: Path) -> Path:
    return save(tmp_path / "scan.nii.gz", np.random.default_rng(0).integers(0, 900, (10, 12, 14)).astype(np.int16))


def test_a_scan_of_the_models_size_is_turned_and_comes_back_exactly(scan_file: Path) -> None:
    scan = read_scan(scan_file)
    grid = model_grid(scan, (12, 10, 14), (9.0, 9.0, 9.0), "RAS")
    seen = grid.volume(scan.values, scan.affine, -1.0)
    np.testing.assert_array_equal(seen, scan.values.transpose(1, 0, 2)[:, ::-1])
    everywhere = np.ones(scan.values.shape, bool)
    np.testing.assert_array_equal(grid.back(seen, scan.affine, everywhere), scan.values.ravel())
    mask = scan.values > 500
    np.testing.assert_array_equal(grid.mask(mask, scan.affine), mask.transpose(1, 0, 2)[:, ::-1])
    assert grid.covers(scan.affine, everywhere)


@pytest.mark.parametrize(("spacing", "error"), [((1.0, 1.2, 2.9), 1e-4), ((2.5, 2.0, 4.0), 0.15)])
def test_a_scan_of_another_size_is_seen_in_place(tmp_path: Path, spacing: tuple[float, ...], error: float) -> None:
    """A linear field has the same value at the same place in the world; averaging may move it by a part of a voxel."""
    world = nib.affines.apply_affine(AFFINE, np.moveaxis(np.indices((30, 28, 20)), 0, -1))
    field = world @ (1.0, -2.0, 0.5)
    scan = read_scan(save(tmp_path / "field.nii.gz", field))
    grid = model_grid(scan, (8, 6, 7), spacing, "RAS", centre=world[15, 14, 10])
    assert nib.aff2axcodes(grid.affine) == ("R", "A", "S")
    np.testing.assert_allclose(np.linalg.norm(grid.affine[:3, :3], axis=0), spacing)
    expected = nib.affines.apply_affine(grid.affine, np.moveaxis(np.indices(grid.shape), 0, -1)) @ (1.0, -2.0, 0.5)
    np.testing.assert_allclose(grid.volume(scan.values, scan.affine, 0.0), expected, atol=error)
    where = np.zeros(scan.values.shape, bool)
    where[15:17, 14, 10] = True
    np.testing.assert_allclose(grid.back(expected, scan.affine, where), field[where], atol=1e-4)
    assert grid.covers(scan.affine, where)
    where[0, 0, 0] = True
    assert not grid.covers(scan.affine, where)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_voxel_beyond_a_face_is_not_covered(scan_file: Path, axis: int) -> None:
    """A grid of two voxels fewer: at either end, the last voxel of the scan lies one beyond it."""
    scan = read_scan(scan_file)
    shape = [n - 2 if a == axis else n for a, n in enumerate(scan.values.shape)]
    affine = scan.affine.copy()
    affine[:3, 3] += scan.affine[:3, axis]  # begins with the scan's second voxel
    grid = Grid(affine, (shape[0], shape[1], shape[2]))
    for place, covered in ((0, False), (1, True), (scan.values.shape[axis] - 2, True), (-1, False)):
        mask = np.zeros(scan.values.shape, bool)
        mask.swapaxes(0, axis)[place, 4, 4] = True
        assert grid.covers(scan.affine, mask) is covered, place


def test_no_masked_voxel_is_lost_between_grids(tmp_path: Path) -> None:
    scan = read_scan(save(tmp_path / "fine.nii.gz", np.random.default_rng(0).normal(size=(30, 28, 20))))
    grid = model_grid(scan, (10, 9, 8), (6.0, 6.0, 7.0), "RAS")
    mask = np.zeros(scan.values.shape, bool)
    mask[15, 14, 10] = True
    assert grid.mask(mask, scan.affine).sum() >= 1


def test_bad_scans_and_masks_are_refused_by_name(scan_file: Path, tmp_path: Path) -> None:
    scan = read_scan(scan_file)
    good = np.zeros((10, 12, 14), np.uint8)
    good[3:5, 4:6, 5:9] = 1
    assert read_mask(save(tmp_path / "good.nii.gz", good), scan).sum() == 16
    moved = AFFINE + np.array([0, 0, 0, 0.5]) * [[1], [0], [0], [0]]
    nan = good.astype(np.float32)
    nan[0, 0, 0] = np.nan
    for name, array, affine, said in (
        ("size", good[:, :, 1:], AFFINE, "expected a mask of the scan's 10x12x14 voxels, got 10x12x13"),
        ("moved", good, moved, "expected the scan's affine .* corners lie 0.5 mm apart"),
        ("nudged", good, AFFINE + (moved - AFFINE) / 250, "expected the scan's affine .* corners lie 0.002 mm apart"),
        ("empty", good * 0, AFFINE, "the mask is empty"),
        ("all", good * 0 + 1, AFFINE, "the mask covers the whole scan"),
        ("nan", nan, AFFINE, "expected finite intensities, got 1 of 1680"),
        ("series", np.stack([good, good], -1), AFFINE, "expected one 3D volume, got shape"),
    ):
        with pytest.raises(VolumeError, match=f"{name}.nii.gz.*{said}"):
            read_mask(save(tmp_path / f"{name}.nii.gz", array, affine), scan)
    for name, array, said in (
        ("nan", nan, "expected finite intensities"),
        ("series", np.stack([good, good], -1), "expected one 3D volume"),
        ("flat", good * 0, "holds no image"),
    ):
        with pytest.raises(VolumeError, match=f"{name}.nii.gz.*{said}"):
            read_scan(save(tmp_path / f"{name}.nii.gz", array))
    with pytest.raises(ValueError, match="expected a NIfTI file as --image, got none"):
        read_scan(None)
    with pytest.raises(ValueError, match="expected a NIfTI file as --mask"):
        read_mask(None, scan)
