from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.data import MetaTensor
from scipy import ndimage

from medical_diffusion_components.preparation.steps.resample import Resample, Resampled
from medical_diffusion_components.transforms.volume_error import VolumeError

OBLIQUE = np.array([[0.8, -0.3, 0.2, -20.0], [0.25, 1.4, 0.1, 7.0], [-0.2, 0.05, 3.1, 100.0], [0, 0, 0, 1]])


def volume(shape=(10, 20, 30), affine=None, seed=0):
    voxels = torch.from_numpy(np.random.default_rng(seed).normal(size=(1, *shape)).astype(np.float32))
    return MetaTensor(voxels, affine=torch.from_numpy(np.diag([0.7, 0.9, 2.5, 1.0]) if affine is None else affine))


def test_smaller_sizes_equal_torchs_antialiased_interpolation():
    img = volume()
    got = Resample(size=(7, 13, 11))(img).as_tensor()
    want = img.as_tensor()
    for axis, n in enumerate((7, 13, 11), start=1):
        moved = want.movedim(axis, 2)  # (1, a, n, b)
        size = (n, moved.shape[-1])
        moved = torch.nn.functional.interpolate(moved, size=size, mode="bilinear", antialias=True, align_corners=False)
        want = moved.movedim(2, axis)
    torch.testing.assert_close(got, want, atol=2e-6, rtol=0)


def test_finer_spacing_equals_simpleitks_linear_interpolation():
    img = volume()
    got = Resample(spacing=(0.5, 0.6, 1.1))(img)
    image = sitk.GetImageFromArray(img[0].numpy().T)
    image.SetSpacing((0.7, 0.9, 2.5))
    grid = sitk.Image(*got.shape[1:], sitk.sitkFloat32)
    grid.SetSpacing((0.5, 0.6, 1.1))
    grid.SetOrigin(got.affine[:3, 3].tolist())
    resampler = sitk.ResampleImageFilter()
    resampler.SetReferenceImage(grid)
    resampler.UseNearestNeighborExtrapolatorOn()
    want = sitk.GetArrayFromImage(resampler.Execute(image)).T
    inside = (slice(2, -2),) * 3  # beyond the outermost centres the two extrapolate differently
    np.testing.assert_allclose(got[0].numpy()[inside], want[inside], atol=1e-5)


@pytest.mark.parametrize("target", [{"spacing": (1.3, 0.8, 2.0)}, {"size": (25, 19, 44)}])
def test_landmarks_keep_their_place_in_the_world(target):
    voxels = np.zeros((1, 30, 34, 28), dtype=np.float32)
    voxels[0, 11, 20, 9] = 1
    img = MetaTensor(torch.from_numpy(ndimage.gaussian_filter(voxels, (0, 3, 3, 3))), affine=torch.from_numpy(OBLIQUE))
    out = Resample(**target)(img)
    centre = ndimage.center_of_mass(out[0].numpy().astype(float))
    np.testing.assert_allclose(np.asarray(out.affine) @ [*centre, 1], OBLIQUE @ [11, 20, 9, 1], atol=0.02)


def test_spacing_is_exactly_what_was_asked_for_and_the_centre_stays():
    img = volume(affine=OBLIQUE)
    out = Resample(spacing=(0.66, 0.66, 3.0))(img)
    np.testing.assert_allclose(np.linalg.norm(np.asarray(out.affine)[:3, :3], axis=0), (0.66, 0.66, 3.0))
    for v in (img, out):
        centre = np.asarray(v.affine) @ [*((np.array(v.shape[1:]) - 1) / 2), 1]
        np.testing.assert_allclose(centre, OBLIQUE @ [4.5, 9.5, 14.5, 1])


def test_a_constant_volume_keeps_exactly_its_value():
    img = MetaTensor(torch.full((1, 11, 7, 9), -1000.1), affine=torch.eye(4))
    for target in ({"spacing": (0.37, 1.9, 2.3)}, {"size": (5, 19, 4)}):
        assert (Resample(**target)(img) == img[0, 0, 0, 0]).all()


def test_detail_that_the_new_grid_cannot_show_is_averaged_and_not_aliased():
    stripes = torch.arange(64).remainder(2).float().reshape(1, 64, 1, 1).expand(1, 64, 5, 4)
    out = Resample(spacing=(4.1, 1, 1))(MetaTensor(stripes.clone(), affine=torch.eye(4)))
    assert (out[:, 1:-1] - 0.5).abs().max() < 0.05


def test_a_volume_on_the_wanted_grid_comes_back_as_it_was():
    img = volume()
    out = Resample(spacing=(0.7, 0.9, 2.5))(img)
    assert torch.equal(out, img) and np.allclose(out.affine, img.affine)


def test_a_spacing_of_metres_is_refused_before_memory_is_taken():
    with pytest.raises(VolumeError, match=r"10x20x30 voxels of 7000x9000x2500 mm would become"):
        Resample(spacing=(1, 1, 1))(volume(affine=np.diag([7000.0, 9000, 2500, 1])))


@pytest.mark.parametrize(
    "arguments", [{}, {"spacing": (1, 1, 1), "size": (2, 2, 2)}, {"spacing": (1, 0, 1)}, {"size": (2.5, 2, 2)}]
)
def test_arguments_without_one_meaning_are_refused(arguments):
    with pytest.raises(ValueError):
        Resample(**arguments)


def test_the_dictionary_form_leaves_other_keys_alone():
    out = Resampled("image", size=(3, 4, 5))({"image": volume(), "case_id": "x"})
    assert out["image"].shape == (1, 3, 4, 5) and out["case_id"] == "x"
