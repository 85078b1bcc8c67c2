from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medical_diffusion_components.preparation.steps.split_breasts import SplitBreasts, SplitBreastsd
from medical_diffusion_components.transforms.volume_error import VolumeError

AFFINE = np.array([[2.0, 0.1, 0, -60.0], [-0.1, 2.0, 0, -40.0], [0, 0, 4.0, -30.0], [0, 0, 0, 1]])
LEFT, RIGHT = (10, 30, 8), (47, 25, 9)  # voxels of a bright spot in each breast
MIDDLE = 33  # the left box ends before plane 25, the right one begins at plane 42


def case():
    """Two boxes of 20 and 15 voxels across on a grid of 60, with a gap between them, and one bright voxel in each."""
    image, mask = torch.rand(1, 60, 44, 20, generator=torch.Generator().manual_seed(0)), torch.zeros(1, 60, 44, 20)
    for (h, w, d), width in ((LEFT, 20), (RIGHT, 15)):
        mask[0, h - 5 : h - 5 + width, w - 12 : w + 8, d - 6 : d + 6] = 1
        image[0, h, w, d] = 50
    return MetaTensor(image, affine=torch.from_numpy(AFFINE)), mask


def place(volume):
    """World position of the brightest voxel."""
    index = np.unravel_index(int(volume.argmax()), volume.shape[1:])
    return (np.asarray(volume.affine) @ [*index, 1])[:3]


def plane(index):
    return 2 * MIDDLE - 1 - index


@pytest.mark.parametrize("fit", ["resize", "crop_or_pad"])
def test_a_landmark_of_the_right_breast_keeps_its_place_and_one_of_the_left_is_mirrored_at_the_plane(fit):
    image, mask = case()
    halves = SplitBreasts((40, 48, 24), fit, margin=4.0)(image, mask)
    tolerance = 1e-6 if fit == "crop_or_pad" else 2.5
    np.testing.assert_allclose(place(halves.right), (AFFINE @ [*RIGHT, 1])[:3], atol=tolerance)
    mirrored = (plane(LEFT[0]), *LEFT[1:])
    np.testing.assert_allclose(place(halves.left), (AFFINE @ [*mirrored, 1])[:3], atol=tolerance)


def test_cropping_or_padding_keeps_every_voxel_of_the_box_as_it_was():
    image, mask = case()
    right, left = SplitBreasts((16, 22, 12), "crop_or_pad", margin=0.0)(image, mask)
    assert right.shape == left.shape == (1, 16, 22, 12)
    h, w, d = (np.flatnonzero(mask[0, MIDDLE:].numpy().any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1)))
    box = image.as_tensor()[:, MIDDLE + h[0] : MIDDLE + h[-1] + 1, w[0] : w[-1] + 1, d[0] : d[-1] + 1]
    inner = right.as_tensor()[:, 0:15, 1:21, 0:12]
    assert torch.equal(inner, box) or torch.equal(right.as_tensor()[:, 1:16, 1:21, 0:12], box)


def test_what_lies_beyond_the_plane_is_not_shown_in_the_other_half():
    image, mask = case()
    image[0, MIDDLE:] = 99
    left = SplitBreasts((60, 44, 20), "crop_or_pad")(image, mask).left
    assert left.max() == 50


def test_resizing_takes_the_outlines_box_with_its_margin():
    image, mask = case()
    right = SplitBreasts((64, 30, 40), "resize", margin=4.0)(image, mask).right
    extent = np.linalg.norm(np.asarray(right.affine)[:3, :3], axis=0) * right.shape[1:]
    spacing = np.linalg.norm(AFFINE[:3, :3], axis=0)
    np.testing.assert_allclose(extent, spacing * [15 + 2 * 2, 20 + 2 * 2, 12 + 2 * 1])


def test_a_patient_with_one_breast_is_refused_and_the_side_named():
    image, mask = case()
    mask[:, MIDDLE:] = 0
    mask[0, 50, 20, 8] = 1
    with pytest.raises(VolumeError, match="on the right, the outline has 0 ml"):
        SplitBreasts((16, 16, 16))(image, mask)


def test_one_case_becomes_two_that_say_which_side_they_are():
    image, mask = case()
    cases = SplitBreastsd("image", (16, 16, 16))(
        {"image": image, "mask": mask, "case_id": "a", "notes": {"outline": "given"}}
    )
    assert [c["part"] for c in cases] == ["right", "left"]
    assert [c["notes"]["mirrored"] for c in cases] == ["no", "left to right"]
    assert all("mask" not in c and c["notes"]["outline"] == "given" and c["case_id"] == "a" for c in cases)


def test_labels_are_cut_as_the_image_is_voxel_by_voxel():
    image, mask = case()
    label = MetaTensor((image.as_tensor() * 3).round().clamp(max=3) * mask, affine=image.affine)
    data = {"image": MetaTensor(label.as_tensor().clone(), affine=image.affine), "mask": mask, "label": label}
    right, left = SplitBreastsd("image", (30, 22, 12), fit="crop_or_pad", label_key="label")(data)
    for half in (right, left):
        assert torch.equal(half["label"].as_tensor(), half["image"].as_tensor())
        torch.testing.assert_close(half["label"].affine, half["image"].affine)
    assert set(right["label"].unique().tolist()) == {0, 1, 2, 3}


def test_resized_labels_are_the_class_with_the_largest_share():
    """Of a label-derived image that is resampled by itself, rounding gives the same where only two classes meet."""
    image, mask = case()
    label = torch.zeros_like(mask)
    label[0, 8:26, 14:36, 3:12] = 1
    label[0, 45:56, 14:30, 4:12] = 1
    data = {"image": MetaTensor(label.clone(), affine=image.affine), "mask": mask}
    data["label"] = MetaTensor(label, affine=image.affine)
    for half in SplitBreastsd("image", (23, 31, 9), label_key="label")(data):
        volume, found = half["image"].as_tensor(), half["label"].as_tensor()
        clear = (volume - 0.5).abs() > 1e-4
        assert torch.equal(found[clear], volume[clear].round()) and set(found.unique().tolist()) == {0, 1}
        torch.testing.assert_close(half["label"].affine, half["image"].affine)
