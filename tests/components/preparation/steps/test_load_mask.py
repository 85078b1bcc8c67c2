from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.data import MetaTensor

from medical_diffusion_components.preparation.steps.load_mask import LoadMask, LoadMaskd
from medical_diffusion_components.transforms.volume_error import VolumeError

GRID = np.diag([1.5, 2.0, 3.0, 1.0])


def image():
    return MetaTensor(torch.zeros(1, 12, 14, 8), affine=torch.from_numpy(GRID))


def drawn(path, spacing=(1.0, 1.25, 2.0), size=(24, 20, 15)):
    """A mask on an LPS grid with another spacing; the mask in SimpleITK's hands."""
    inside = np.zeros(size[::-1], np.uint8)
    inside[3:9, 4:13, 6:20] = 3
    mask = sitk.GetImageFromArray(inside)
    mask.SetSpacing(spacing)
    mask.SetOrigin((-19.2, -24.3, 1.3))
    sitk.WriteImage(mask, str(path))
    return mask


@pytest.mark.parametrize("name", ["mask.nii.gz", "mask.seg.nrrd"])
def test_a_mask_of_another_series_lands_where_simpleitk_puts_it(tmp_path, name):
    mask = drawn(tmp_path / name)
    grid = sitk.Image(12, 14, 8, sitk.sitkUInt8)
    grid.SetSpacing((1.5, 2.0, 3.0))
    grid.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    want = sitk.GetArrayFromImage(sitk.Resample(mask, grid, sitk.Transform(), sitk.sitkNearestNeighbor)).T > 0
    got = LoadMask()(tmp_path / name, image())[0].numpy()
    assert set(np.unique(got)) == {0, 1}
    assert want.sum() > 100 and (got != want).sum() <= 0.02 * want.sum()  # ties between two voxels


def test_a_mask_elsewhere_in_the_world_is_refused(tmp_path):
    nib.save(
        nib.Nifti1Image(np.ones((5, 5, 5), np.uint8), np.diag([1, 1, 1, 1.0]) + np.eye(4, k=3) * 500),
        tmp_path / "m.nii",
    )
    with pytest.raises(VolumeError, match="marks no voxel"):
        LoadMask()(tmp_path / "m.nii", image())


def test_a_damaged_mask_or_one_of_several_layers_is_refused(tmp_path):
    (tmp_path / "m.nrrd").write_bytes(b"NRRD0004\ntype: uchar\n")
    with pytest.raises(VolumeError, match="NRRD volume of one layer"):
        LoadMask()(tmp_path / "m.nrrd", image())
    sitk.WriteImage(sitk.Image([5, 6, 7], sitk.sitkVectorUInt8, 2), str(tmp_path / "v.nrrd"))
    with pytest.raises(VolumeError, match="NRRD volume of one layer"):
        LoadMask()(tmp_path / "v.nrrd", image())


def test_cases_without_a_mask_pass(tmp_path):
    load = LoadMaskd("mask", grid_key="image", allow_missing_keys=True)
    assert set(load({"image": image()})) == {"image"}
