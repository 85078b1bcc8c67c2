from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.transforms import Compose
from scipy.ndimage import label

from medical_diffusion_components.transforms.rand_mask_patches import RandMaskPatches, RandMaskPatchesd

IMAGE = torch.rand(2, 10, 20, 30) + 1  # two channels, no zero


def masked(seed: int = 0, image: torch.Tensor = IMAGE, **settings):
    return RandMaskPatches(**{"patch_size": (3, 4, 5)} | settings).set_random_state(seed)(image)


@pytest.mark.parametrize("share", [0.001, 0.1, 0.3, 0.5, 0.77, 0.95])
@pytest.mark.parametrize("patch_size", [(3, 4, 5), (1, 1, 1), ((2, 10), (3, 20), (1, 7))])
def test_exactly_the_share_is_removed(share: float, patch_size: tuple) -> None:
    for seed in range(3):
        assert masked(seed, share=share, patch_size=patch_size).mask.sum() == round(share * 6000)


@pytest.mark.parametrize(("share", "expected"), [(0.0123, 74), (0.0122, 73), (0.0001, 1)])  # 73.8, 73.2, 0.6 voxels
def test_the_share_is_rounded_to_the_nearest_whole_voxel(share: float, expected: int) -> None:
    assert masked(share=share).mask.sum() == expected


def test_one_patch_is_a_cuboid_of_its_size_inside_the_volume() -> None:
    starts = set()
    for seed in range(20):
        places = masked(seed, num_patches=1).mask[0].nonzero()
        low, high = places.amin(dim=0), places.amax(dim=0)
        assert (high - low + 1).tolist() == [3, 4, 5] and len(places) == 60
        starts.add(tuple(low.tolist()))
    assert len(starts) > 15


def test_a_patch_of_a_range_takes_every_length_of_it() -> None:
    lengths = [
        tuple(
            np.ptp(np.argwhere(masked(seed, num_patches=1, patch_size=((2, 4), 3, (1, 2))).mask[0].numpy()), axis=0) + 1
        )
        for seed in range(60)
    ]
    assert [set(axis) for axis in zip(*lengths)] == [{2, 3, 4}, {3}, {1, 2}]


def test_patches_reach_every_voxel() -> None:
    total = sum(masked(seed, num_patches=1, patch_size=(8, 18, 28)).mask[0] for seed in range(300))
    assert total.min() > 0 and total.max() == 300


def test_several_patches_are_as_many_as_asked_for() -> None:
    small = masked(num_patches=4, patch_size=(1, 2, 3), image=torch.ones(1, 40, 50, 60)).mask[0]
    assert label(small.numpy(), structure=np.ones((3, 3, 3)))[1] == 4 and small.sum() == 24


def test_removed_voxels_are_filled_in_all_channels_and_others_kept() -> None:
    image, mask = masked(share=0.3, fill=-7.0)
    assert (image == torch.where(mask == 1, -7.0, IMAGE)).all()
    assert mask.shape == (1, 10, 20, 30) and set(mask.unique().tolist()) == {0, 1}


def test_noise_is_uniform_between_minus_one_and_one() -> None:
    image, mask = masked(share=0.5, fill="noise")
    noise = image[mask.expand_as(image) == 1]
    assert -1 <= noise.min() < -0.98 and 0.98 < noise.max() <= 1 and abs(noise.mean()) < 0.05
    assert (image[:, mask[0] == 0] == IMAGE[:, mask[0] == 0]).all()


def test_the_target_is_an_untouched_copy() -> None:
    before = IMAGE.clone()
    transform = RandMaskPatchesd("image", (3, 4, 5), share=0.3).set_random_state(0)
    given = {"image": IMAGE, "case_id": "a"}
    data = transform(given)
    data["image"] += 1
    assert torch.equal(data["target"], before) and torch.equal(IMAGE, before) and given["image"] is IMAGE
    assert data.keys() == {"image", "target", "mask", "case_id"} and data["target"].data_ptr() != IMAGE.data_ptr()


def test_a_seed_fixes_the_mask_through_a_pipeline() -> None:
    pipeline = Compose([RandMaskPatchesd("image", (3, 4, 5), share=0.3, fill="noise")])
    one, same, other = (pipeline.set_random_state(seed)({"image": IMAGE}) for seed in (1, 1, 2))
    assert torch.equal(one["image"], same["image"]) and not torch.equal(one["mask"], other["mask"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "either share or num_patches, got share None"),
        ({"share": 0.3, "num_patches": 2}, "either share or num_patches"),
        ({"share": 0.0}, "between 0 and 1, got 0.0"),
        ({"share": 1.0}, "between 0 and 1, got 1.0"),
        ({"num_patches": 0}, "at least 1, got 0"),
        ({"share": 0.3, "patch_size": (3, 4)}, "three numbers or pairs"),
        ({"share": 0.3, "patch_size": (3, 4, 0)}, "three numbers or pairs"),
        ({"share": 0.3, "patch_size": (3, 4, (5, 4))}, "three numbers or pairs"),
        ({"share": 0.3, "fill": "black"}, "a number or \"noise\", got 'black'"),
        ({"share": 0.3, "patch_size": (11, 4, 5)}, r"fit into the volume of \(10, 20, 30\) voxels"),
        ({"share": 1e-5}, "less than one of the 6000 voxels"),
    ],
)
def test_impossible_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        masked(**settings)


def test_two_volumes_cannot_share_a_target() -> None:
    with pytest.raises(ValueError, match="expected one key"):
        RandMaskPatchesd(["image", "other"], (3, 4, 5), share=0.3)
