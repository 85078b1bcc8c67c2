"""Bounding box, cube, and voxels that stay where they are in the world."""

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Resized

from medical_diffusion_components.preparation.steps.crop_to_cube import CropToCube, CropToCubed
from medical_diffusion_components.transforms.volume_error import VolumeError

OBLIQUE = torch.tensor([[1.8, 0.2, 0.1, -40], [-0.3, 0.9, 0.05, 12], [0.1, 0.1, 2.5, 7], [0, 0, 0, 1.0]]).double()
BOX = (slice(3, 9), slice(5, 19), slice(11, 20))  # 6 x 14 x 9


def image(background=-1.0, box=BOX, shape=(1, 10, 20, 30)):
    """A volume whose foreground voxels all have a value of their own."""
    img = torch.full(shape, background)
    inside = img[(slice(None), *box)]
    img[(slice(None), *box)] = background + 1 + torch.arange(inside.numel()).reshape(inside.shape)
    return MetaTensor(img, affine=OBLIQUE)


def test_the_box_comes_out_whole_in_the_middle_of_a_cube():
    cube = CropToCube()(image())
    expected = torch.full((1, 14, 14, 14), -1.0)
    expected[0, 4:10, :, 2:11] = image()[(0, *BOX)]  # pads 4 + 4, 0 and 2 + 3
    torch.testing.assert_close(cube.as_tensor(), expected)


def test_every_voxel_keeps_its_place_in_the_world():
    before, after = image(), CropToCube(margin=2)(image())
    for value in (0.0, 100.0, 755.0):
        places = []
        for img in (before, after):
            (index,) = torch.argwhere(img.as_tensor()[0] == value).double()
            places.append(img.affine[:3, :3] @ index + img.affine[:3, 3])
        torch.testing.assert_close(*places)


def test_a_margin_beyond_the_edge_is_filled_with_background():
    cube = CropToCube(margin=4)(image(background=7.0))
    assert cube.shape == (1, 22, 22, 22) and cube.min() == 7
    torch.testing.assert_close(cube.as_tensor()[0, 8:14, 4:18, 6:15], image(7.0).as_tensor()[(0, *BOX)])


def test_the_threshold_is_a_share_of_the_range_and_passes_over_noise():
    img = torch.rand(1, 10, 20, 30, generator=torch.Generator().manual_seed(0)) * 9.9  # noise up to 9.9
    img[(0, *BOX)] = 100
    assert CropToCube(threshold=0.1)(img).shape == (1, 14, 14, 14)
    assert CropToCube()(img).shape == (1, 30, 30, 30)


@pytest.mark.parametrize("threshold", [0.0, 0.1])
def test_voxels_below_the_background_and_specks_outside_change_nothing(threshold):
    img = image(background=0.0, shape=(1, 40, 40, 40))
    plain = CropToCube(threshold)(img)
    spoilt = img.clone()
    spoilt[0, 30:34, 30, 30] = -50.0  # the undershoot of a spline
    spoilt[0, 38, 38, 38] = 400.0  # a hot pixel: 1 voxel, the object has 756, below a thousandth it is none
    spoilt[0, 3:9, 5:19, 11:20] = img[0, 3:9, 5:19, 11:20]
    big = torch.nn.functional.interpolate(spoilt[None], scale_factor=2)[0]  # speck of 8, object of 6048
    big[0, 76:78, 76:78, 76:78] = 0
    big[0, 77, 77, 77] = 400.0
    cut = CropToCube(threshold)(MetaTensor(big, affine=OBLIQUE))
    assert cut.shape == (1, *(2 * n for n in plain.shape[1:])) and cut.min() == 0


def test_a_label_map_is_cut_where_the_image_is():
    img = image()
    label = torch.zeros_like(img)
    label[0, 4, 6, 12] = 2
    cropped = CropToCubed(["image", "label"], source_key="image")({"image": img, "label": label})
    assert cropped["label"].shape == (1, 14, 14, 14) and cropped["label"].min() == 0
    # voxel (4, 6, 12) is (1, 1, 1) in the box, and the box begins at (4, 0, 2) in the cube
    assert torch.argwhere(cropped["label"].as_tensor()).tolist() == [[0, 5, 1, 3]]
    torch.testing.assert_close(cropped["label"].affine, cropped["image"].affine)


def test_the_order_of_keys_does_not_change_the_box():
    data = {"image": image(), "label": image(background=0.0, box=(slice(0, 2),) * 3)}
    for keys in (["image", "label"], ["label", "image"]):
        cropped = CropToCubed(keys, source_key="image")(data)
        assert cropped["image"].shape == cropped["label"].shape == (1, 14, 14, 14)


def test_without_a_source_each_key_decides_for_itself():
    data = {"a": image(), "b": image(box=(slice(0, 2), slice(0, 3), slice(0, 2)))}
    cropped = CropToCubed(["a", "b"])(data)
    assert cropped["a"].shape[1] == 14 and cropped["b"].shape[1] == 3


def test_with_resize_it_is_the_papers_preparation():
    # a box 12 x 28 x 18 mm (2 mm voxels) becomes a cube of 28 mm, so 7 voxels of 4 mm
    img = MetaTensor(image().as_tensor(), affine=torch.diag(torch.tensor([2.0, 2, 2, 1])))
    prepare = Compose([CropToCubed("image"), Resized("image", spatial_size=(7, 7, 7), mode="area")])
    prepared = prepare({"image": img})["image"]
    assert prepared.shape == (1, 7, 7, 7)
    np.testing.assert_allclose(nib.affines.voxel_sizes(prepared.affine.numpy()), 4)
    pooled = CropToCube()(img).as_tensor()[0].reshape(7, 2, 7, 2, 7, 2).mean(dim=(1, 3, 5))
    torch.testing.assert_close(prepared.as_tensor()[0], pooled)


def test_a_volume_without_foreground_is_named():
    img = MetaTensor(torch.full((1, 4, 5, 6), 3.0))
    img.meta["filename_or_obj"] = "/data/empty.nii.gz"
    with pytest.raises(RuntimeError, match=r"CropToCubed: /data/empty\.nii\.gz: no foreground, every voxel is 3"):
        Compose([CropToCubed("image")])({"image": img})


def test_an_inverted_volume_is_not_called_one_of_a_single_value():
    img = torch.full((1, 10, 10, 10), 9.0)
    img[0, 3:7, 3:7, 3:7] = 2
    with pytest.raises(VolumeError, match="nothing is brighter than 9, the least is 2: are light and dark exchanged"):
        CropToCube()(img)


def test_a_label_on_another_grid_is_refused():
    data = {"image": image(), "label": torch.ones(1, 10, 20, 31)}
    with pytest.raises(VolumeError, match=r"expected the size of .*\(10, 20, 30\), got \(10, 20, 31\)"):
        CropToCubed(["image", "label"], source_key="image")(data)


@pytest.mark.parametrize("arguments", [{"threshold": 1.0}, {"threshold": -0.1}, {"margin": -1}])
def test_arguments_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match="got"):
        CropToCube(**arguments)
