from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medical_diffusion_components.transforms.spacing_affine import SpacingAffine, SpacingAffined

SPACING = (0.7, 1.5, 4.0)


def test_affine_has_the_spacing_on_ras_axes():
    affine = SpacingAffine(SPACING)(torch.zeros(1, 10, 20, 31)).affine.numpy()
    np.testing.assert_allclose(nib.affines.voxel_sizes(affine), SPACING)
    assert nib.aff2axcodes(affine) == ("R", "A", "S") and affine.dtype == np.float64
    np.testing.assert_array_equal(affine[:3, :3], np.diag(SPACING))


@pytest.mark.parametrize("shape", [(10, 20, 31), (1, 2, 3)])
def test_centre_of_the_volume_is_the_origin_of_the_world(shape):
    affine = SpacingAffine(SPACING)(torch.zeros(2, *shape)).affine.numpy()
    corners = np.array([[x, y, z] for x in (0, shape[0] - 1) for y in (0, shape[1] - 1) for z in (0, shape[2] - 1)])
    np.testing.assert_allclose(nib.affines.apply_affine(affine, corners).mean(0), 0, atol=1e-12)


@pytest.mark.parametrize("axcodes", ["RAS", "PSR", "LIA"])
def test_axes_point_where_the_letters_say(axcodes):
    affine = SpacingAffined("pred", SPACING, axcodes)({"pred": torch.zeros(1, 10, 20, 31)})["pred"].affine.numpy()
    assert "".join(nib.aff2axcodes(affine)) == axcodes
    np.testing.assert_allclose(nib.affines.voxel_sizes(affine), SPACING)
    np.testing.assert_allclose(nib.affines.apply_affine(affine, [4.5, 9.5, 15]), 0, atol=1e-12)


@pytest.mark.parametrize("axcodes", ["RAA", "RA", "RASS", "ras", "XYZ"])
def test_letters_that_name_no_axes_are_errors(axcodes):
    with pytest.raises(ValueError, match=f"axcodes must hold one each .* got '{axcodes}'"):
        SpacingAffine(SPACING, axcodes)


def test_voxels_stay_and_an_old_affine_does_not():
    volume = MetaTensor(torch.randn(1, 3, 4, 5), affine=torch.eye(4) * 9)
    data = SpacingAffined("pred", SPACING)({"pred": volume, "other": 1})
    assert torch.equal(data["pred"].as_tensor(), volume.as_tensor()) and data["other"] == 1
    np.testing.assert_allclose(data["pred"].pixdim, SPACING)
    assert volume.affine[0, 0] == 9


@pytest.mark.parametrize("spacing", [(1, 1), (1, 0, 1), (1, 1, -2), (1, float("nan"), 1), (float("inf"), 1, 1)])
def test_spacing_must_be_three_positive_numbers(spacing):
    with pytest.raises(ValueError, match="three positive numbers in mm"):
        SpacingAffine(spacing)


@pytest.mark.parametrize("axcodes", ["RAS", "PSR", "LPI"])
def test_axes_point_where_asked_and_the_centre_stays_the_origin(axcodes):
    affine = SpacingAffine(SPACING, axcodes)(torch.zeros(1, 10, 20, 31)).affine.numpy()
    assert "".join(nib.aff2axcodes(affine)) == axcodes
    np.testing.assert_allclose(nib.affines.voxel_sizes(affine), SPACING)
    np.testing.assert_allclose(nib.affines.apply_affine(affine, [4.5, 9.5, 15]), 0, atol=1e-12)


def test_letters_that_are_no_axes_are_refused():
    with pytest.raises(ValueError, match="got 'RAX'"):
        SpacingAffined("pred", SPACING, axcodes="RAX")
