"""The gate before a network: what passes is untouched, what fails is named."""

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose

from medical_diffusion_components.transforms.check_volume import CheckVolume, CheckVolumed
from medical_diffusion_components.transforms.load_volume import LoadVolumed
from medical_diffusion_components.transforms.volume_error import VolumeError

SIZE = (10, 20, 30)


def volume(shape=(1, *SIZE), **voxels):
    img = MetaTensor(torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    img.meta["filename_or_obj"] = "/data/knee_7.nii.gz"
    for value in voxels.values():
        img.view(-1)[5] = value
    return img


def test_a_good_volume_passes_untouched():
    img = volume()
    checked = CheckVolume(spatial_size=SIZE, value_range=(-1, 1))(img)
    assert checked is img


@pytest.mark.parametrize(
    ("img", "message"),
    [
        (volume(SIZE), r"expected a 3D volume \(C, H, W, D\), got shape \(10, 20, 30\)"),
        (volume((1, *SIZE, 2)), r"got shape \(1, 10, 20, 30, 2\)"),
        (volume((3, *SIZE)), r"expected 1 channel\(s\), got 3"),
        (volume((1, 20, 10, 30)), "expected 10x20x30 voxels, got 20x10x30: .*`prepare`.*--image_size"),
        (volume(v=torch.nan), "got 1 of 6000 voxels that are NaN or infinite"),
        (volume(v=-torch.inf), "got 1 of 6000 voxels that are NaN or infinite"),
        (volume() * 0 + 7, "every voxel is 7: the volume holds no image"),
        (volume(v=1.01), r"expected intensities in \[-1, 1\], got \[-0\.99.*, 1\.01\]"),
    ],
)
def test_a_bad_volume_is_named_with_what_was_expected_and_what_came(img, message):
    with pytest.raises(VolumeError, match=rf"^/data/knee_7\.nii\.gz: .*{message}"):
        CheckVolume(spatial_size=SIZE, value_range=(-1, 1))(img)


def test_voxels_of_an_oblique_scan_are_measured_along_its_own_axes():
    """Turned by 45 degrees: no row of the affine is short."""
    half = 0.5**0.5
    affine = torch.tensor([[half * 0.002, -half, 0, 0], [half * 0.002, half, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    with pytest.raises(VolumeError, match=r"got 0\.002 x 1 x 1 mm"):
        CheckVolume()(MetaTensor(volume().as_tensor(), affine=affine))


@pytest.mark.parametrize(("size", "refused"), [(0.002, True), (2000.0, True), (0.02, False), (50.0, False)])
def test_voxels_of_a_size_that_no_scan_has_are_named(size, refused):
    """As in headers in metres or micrometres."""
    img = MetaTensor(volume().as_tensor(), affine=torch.diag(torch.tensor([1.0, size, 1.0, 1.0])))
    if refused:
        with pytest.raises(VolumeError, match=rf"of 0\.01 to 100 mm, got 1 x {size:.4g} x 1 mm: .* metres"):
            CheckVolume()(img)
    else:
        assert CheckVolume()(img) is img


def test_nothing_is_asked_of_size_and_range_by_default():
    img = volume((1, 3, 4, 5)) * 1000
    assert CheckVolume()(img) is img


def test_rounding_at_the_ends_of_the_range_passes():
    img = volume(v=1 + 1e-6)
    assert CheckVolume(value_range=(-1, 1))(img) is img


def test_an_empty_label_map_passes_where_it_is_allowed():
    img = torch.zeros(1, *SIZE)
    assert CheckVolume(allow_constant=True)(img) is img
    with pytest.raises(VolumeError, match="a volume without a file name: every voxel is 0"):
        CheckVolume()(img)


def nan_in(array):
    array[3, 4, 5] = np.nan
    return array


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((6, 8), np.float32), "LoadVolumed: .*got shape .*single slice"),
        (np.ones((6, 8, 9, 4), np.float32), r"LoadVolumed: .*got shape \(6, 8, 9, 4\): a time series"),
        (nan_in(np.random.default_rng(0).random((6, 8, 9))), "CheckVolumed: .*1 of 432 voxels that are NaN"),
        (np.full((6, 8, 9), 3.0), "CheckVolumed: .*every voxel is 3"),
        (np.random.default_rng(0).random((9, 8, 6)), "CheckVolumed: .*expected 6x8x9 voxels, got 9x8x6"),
    ],
)
def test_in_a_pipeline_the_last_line_names_the_file_and_the_cause(tmp_path, array, message):
    nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "knee.nii.gz")
    pipeline = Compose([LoadVolumed("image"), CheckVolumed("image", spatial_size=(6, 8, 9))])
    with pytest.raises(RuntimeError, match=rf"^applying transform {message}") as error:
        pipeline({"image": str(tmp_path / "knee.nii.gz")})
    assert f"{tmp_path}/knee.nii.gz" in str(error.value)


def test_before_any_failure_the_transform_has_its_plain_name():
    assert str(CheckVolumed("image")) == "CheckVolumed"


def test_a_volume_smaller_than_the_least_size_along_any_axis_is_refused():
    volume = torch.rand(1, 6, 8, 9)
    assert CheckVolume(min_size=(6, 8, 9))(volume) is volume
    with pytest.raises(VolumeError, match="expected at least 6x9x9 voxels, got 6x8x9"):
        CheckVolume(min_size=(6, 9, 9))(volume)
