from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medical_diffusion_components.cohorts.phantoms import breast_phantom
from medical_diffusion_components.preparation.steps.breast_outline import BreastOutline, BreastOutlined
from medical_diffusion_components.preparation.steps.notes import NOTES_KEY
from medical_diffusion_components.transforms.volume_error import VolumeError


def phantom(subject, seed=1):
    drawn = breast_phantom(subject, seed, (80, 80, 34), (4.2, 4.2, 5.3))
    image = MetaTensor(torch.from_numpy(drawn.image[None]), affine=torch.from_numpy(drawn.affine))
    return image, drawn.label > 0


def test_the_outline_agrees_with_the_masks_of_phantoms_that_it_was_not_fitted_to():
    dice = []
    for subject in range(4):
        image, truth = phantom(subject)
        found = BreastOutline()(image)[0].numpy() > 0
        dice.append(2 * (found & truth).sum() / (found.sum() + truth.sum()))
    assert min(dice) > 0.78 and np.mean(dice) > 0.88


def test_the_outline_is_found_in_the_same_place_when_breasts_are_mirrored():
    image, _ = phantom(0)
    mirrored = MetaTensor(image.as_tensor().flip(1), affine=image.affine)
    found, turned = BreastOutline()(image), BreastOutline()(mirrored).flip(1)
    assert float((found != turned).float().sum() / found.sum()) < 0.02


def test_a_given_outline_is_left_alone_and_noted():
    image, truth = phantom(0)
    out = BreastOutlined("image")({"image": image, "mask": truth})
    assert out["mask"] is truth and out[NOTES_KEY] == {"outline": "given"}
    assert BreastOutlined("image")({"image": image})[NOTES_KEY] == {"outline": "found"}


def test_a_volume_without_breasts_or_on_other_axes_is_refused():
    noise = torch.rand(1, 40, 40, 20, generator=torch.Generator().manual_seed(0))
    ball = noise * 0.01
    ball[:, 5:35, 5:25, :] += 1  # a flat front
    with pytest.raises(VolumeError, match="in front of the chest wall"):
        BreastOutline(chest_wall=0.0, flatness=0.0)(MetaTensor(ball, affine=torch.diag(torch.tensor([8.0, 8, 8, 1]))))
    with pytest.raises(VolumeError, match="got LPS"):
        BreastOutline()(MetaTensor(noise, affine=torch.diag(torch.tensor([-3.0, -3, 3, 1]))))
