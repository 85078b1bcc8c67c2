from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from medical_diffusion_components.preparation.steps.load_scan import LoadScan, LoadScand
from medical_diffusion_components.transforms.volume_error import VolumeError

VOXELS = np.random.default_rng(0).normal(size=(7, 6, 5)).astype(np.float32)


def write(path, sform=None, qform=None, unit="mm"):
    image = nib.Nifti1Image(VOXELS, np.eye(4))
    image.set_sform(np.eye(4) if sform is None else sform, 0 if sform is None else 1)
    image.set_qform(np.eye(4) if qform is None else qform, 0 if qform is None else 1)
    if qform is not None:
        image.header["pixdim"][1:4] = nib.affines.voxel_sizes(qform)
    image.header.set_xyzt_units(unit)
    nib.save(image, path)
    return str(path)


def moved(x):
    affine = np.eye(4)
    affine[0, 3] = x
    return affine


@pytest.mark.parametrize("other", [np.diag([1, 1, 1.02, 1]), np.diag([-1.0, 1, 1, 1]), moved(0.02)])
def test_two_transforms_that_differ_are_refused_or_chosen_between(tmp_path, other):
    path = write(tmp_path / "a.nii", np.eye(4), other)
    with pytest.raises(VolumeError, match="sform and qform put the corners .* --affine_from"):
        LoadScan()(path)
    for choice, affine in (("sform", np.eye(4)), ("qform", other)):
        data = LoadScand("image", affine_from=choice)({"image": path})
        expected = nib.as_closest_canonical(nib.Nifti1Image(VOXELS, affine))
        np.testing.assert_allclose(data["image"].affine, expected.affine, atol=1e-6)
        np.testing.assert_array_equal(data["image"].numpy()[0], expected.get_fdata())
        assert data["notes"] == {f"affine_from_{choice}": True}


def test_rounding_of_the_quaternion_is_no_contradiction(tmp_path):
    affine = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.3, -0.2, 0.1) * [0.9, 1.1, 3], [1, 2, 3])
    data = LoadScand("image")({"image": write(tmp_path / "a.nii", affine, affine)})
    assert "notes" not in data


def test_what_the_header_does_not_say_is_noticed(tmp_path):
    data = LoadScand("image")({"image": write(tmp_path / "a.nii")})
    assert data["notes"] == {"orientation_unknown": True}


def test_metres_become_millimetres(tmp_path):
    metres = np.diag([0.001, 0.002, 0.003, 1])
    data = LoadScand("image")({"image": write(tmp_path / "a.nii", metres, unit="meter")})
    np.testing.assert_allclose(np.diag(data["image"].affine)[:3], (1, 2, 3), rtol=1e-5)
    assert data["notes"] == {"unit_not_millimetres": True}


def test_spacings_planes_and_slices_beyond_belief_are_refused(tmp_path):
    thick = write(tmp_path / "a.nii", np.diag([1, 1, 4.0, 1]))
    with pytest.raises(VolumeError, match="expected sagittal slices, got axial ones"):
        LoadScan(plane="sagittal")(thick)
    with pytest.raises(VolumeError, match="expected voxels of 0.2 to 3 mm"):
        LoadScan(spacing_range=(0.2, 3))(thick)
    assert LoadScan(plane="axial")(thick).shape == (1, 7, 6, 5)
    assert LoadScan(plane="sagittal")(write(tmp_path / "b.nii", np.eye(4))).shape == (1, 7, 6, 5)
    nib.save(nib.Nifti1Image(VOXELS[..., :1], np.eye(4)), tmp_path / "c.nii")
    with pytest.raises(VolumeError, match="at least 3 slices each way"):
        LoadScan()(tmp_path / "c.nii")
