from __future__ import annotations

import gzip
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from medical_diffusion_components.preparation.steps.load_scan import LoadScan, LoadScand
from medical_diffusion_components.transforms.volume_error import VolumeError

VOXELS = np.random.default_rng(0).normal(size=(7, 6, 5)).astype(np.float32)


def write(path, sform=None, qform=None, unit="mm"):
    image = nib.Nifti1Image(VOXELS, np.eye(4))
    image.set_sform(np.eye(4) if sform is None else sform, 0 if sform is None else 1)
    image.set_qform(np.eye(4) if qform is None else qform, 0 if qform is None else 1)
    given = sform if qform is None else qform
    if given is not None:
        image.header["pixdim"][1:4] = nib.affines.voxel_sizes(given)
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


@pytest.mark.parametrize(
    ("place", "value", "noted"),
    [
        (112, struct.pack("<f", np.nan), {"slope_not_a_number": True}),
        (112, struct.pack("<f", np.inf), {"slope_not_a_number": True}),
        (112, struct.pack("<f", 0), None),  # no scaling, by the standard
        (68, struct.pack("<h", 5), {"statistical_map": True}),
        (68, struct.pack("<h", 1001), None),
    ],
)
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_slopes_and_intents_are_read_as_they_stand_in_the_file(tmp_path, place, value, noted, ending):
    content = bytearray(Path(write(tmp_path / "a.nii", moved(2), moved(2))).read_bytes())
    content[place : place + len(value)] = value
    path = tmp_path / f"b{ending}"
    path.write_bytes(gzip.compress(content) if ending == ".nii.gz" else content)
    assert LoadScand("image")({"image": str(path)}).get("notes") == noted


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


@pytest.mark.parametrize("stated", [(1.0, 1.0, 1.0), (1.0, 2.0, 3.1)])
def test_sizes_in_the_header_that_are_not_those_of_a_lone_sform_are_refused_or_overruled(tmp_path, stated):
    image = nib.Nifti1Image(VOXELS, np.diag([1.0, 2, 3, 1]))
    image.header["pixdim"][1:4] = stated
    path = str(tmp_path / "a.nii")
    nib.save(image, path)
    for choice in ("refuse", "qform"):
        with pytest.raises(VolumeError, match="1 x 2 x 3 mm, the sizes in the header .* --affine_from sform"):
            LoadScan(affine_from=choice)(path)
    data = LoadScand("image", affine_from="sform")({"image": path})
    assert np.linalg.norm(np.asarray(data["image"].affine)[:3, :3], axis=0) == pytest.approx((1, 2, 3))
    assert data["notes"] == {"affine_from_sform": True}


def test_one_transform_whose_code_is_zero_is_none(tmp_path):
    affine = np.diag([-1.0, 1, 2, 1])
    for name, (sform, qform) in {"q.nii": (None, affine), "s.nii": (affine, None)}.items():
        data = LoadScand("image")({"image": write(tmp_path / name, sform, qform)})
        expected = nib.as_closest_canonical(nib.Nifti1Image(VOXELS, affine))
        np.testing.assert_array_equal(data["image"].numpy()[0], expected.get_fdata())
        assert "notes" not in data


def test_microns_become_millimetres_and_an_unknown_unit_is_refused(tmp_path):
    data = LoadScand("image")({"image": write(tmp_path / "a.nii", np.diag([1000.0, 2000, 3000, 1]), unit="micron")})
    np.testing.assert_allclose(np.diag(data["image"].affine)[:3], (1, 2, 3), rtol=1e-5)
    image = nib.load(write(tmp_path / "b.nii", np.eye(4)))
    image.header["xyzt_units"] = 5
    nib.save(image, tmp_path / "c.nii")
    with pytest.raises(VolumeError, match=r"expected a unit of length \(0 to 3\) in xyzt_units, got 5"):
        LoadScan()(str(tmp_path / "c.nii"))


@pytest.mark.parametrize("ending", ["nibabel.nii.gz", "itk.nii.gz", "itk.mha", "itk.nrrd"])
def test_a_header_that_nobody_filled_in_is_remarked_on(tmp_path, ending):
    path = str(tmp_path / ending)
    for origin, notes in ((0.0, {"identity_affine": True}), (1.5, {})):
        if ending.startswith("itk"):
            image = SimpleITK.GetImageFromArray(VOXELS)
            image.SetOrigin((origin, 0.0, 0.0))
            SimpleITK.WriteImage(image, path)
        else:
            nib.save(nib.Nifti1Image(VOXELS, moved(origin)), path)
        assert LoadScand("image")({"image": path}).get("notes", {}) == notes
