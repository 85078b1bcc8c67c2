from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage

from medical_diffusion_components.cohorts.template import template_subject
from medical_diffusion_components.preparation.steps.check_skull import CheckSkull, CheckSkulld
from medical_diffusion_components.preparation.steps.notes import NOTES_KEY
from medical_diffusion_components.transforms.volume_error import VolumeError

NOISE = [0.0, 0.05]  # share of the maximum


def brain(index=0, noise=0.0, skull=False, scale=1.0):
    """A template subject of 3 mm; with ``skull``, 7 mm of dark bone and 7 mm of bright scalp around it."""
    subject = template_subject(index, (56, 56, 56))
    image = np.pad(subject.image + 1, 8)
    spacing = np.diag(subject.affine)[:3]
    distance = ndimage.distance_transform_edt(~ndimage.binary_fill_holes(image > 0), sampling=spacing)
    if skull:
        image[(distance > 0) & (distance <= 7)] = 0.15
        image[(distance > 7) & (distance <= 14)] = 1.7
    rng = np.random.default_rng(index)
    real, imaginary = noise * image.max() * rng.standard_normal((2, *image.shape))
    image = np.hypot(image + real, imaginary) if noise else image
    affine = subject.affine * scale
    return MetaTensor(torch.from_numpy(image[None].astype(np.float32)), affine=torch.from_numpy(affine))


@pytest.mark.parametrize("noise", NOISE)
def test_bare_brains_have_the_volume_of_brains_and_no_valley(noise):
    for index in range(3):
        signs = CheckSkull().signs(brain(index, noise))
        assert 1300 < signs.volume_ml < 2200 and signs.valley > 0.9
        assert not CheckSkull().has_skull(signs)


@pytest.mark.parametrize("noise", NOISE)
def test_a_skull_is_told_by_the_valley_of_bone_even_in_a_head_as_small_as_a_brain(noise):
    signs = CheckSkull().signs(brain(0, noise, skull=True, scale=0.85))
    assert signs.volume_ml < 2300 and signs.valley < 0.6
    assert CheckSkull().has_skull(signs)


def test_a_head_is_told_by_its_size_too():
    assert CheckSkull().signs(brain(1, skull=True)).volume_ml > 2300


def test_reporting_notes_the_skull_and_refusing_names_the_measurements():
    report = CheckSkulld("image")
    assert report({"image": brain(skull=True)})[NOTES_KEY] == {"skull": True}
    assert report({"image": brain()})[NOTES_KEY] == {"skull": False}
    with pytest.raises(VolumeError, match=r"looks like a head.*ml.*valley"):
        CheckSkulld("image", action="refuse")({"image": brain(skull=True)})
