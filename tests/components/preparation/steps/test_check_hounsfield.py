from __future__ import annotations

import numpy as np
import pytest
import torch

from medical_diffusion_components.preparation.steps.check_hounsfield import CheckHounsfield
from medical_diffusion_components.transforms.volume_error import VolumeError


@pytest.fixture
def chest():
    """Air, a body of 40, lungs of -850 in it, bone of 700; corners of -3024 outside the field of view."""
    volume = torch.full((1, 40, 40, 30), -1000.0)
    volume[:, 8:32, 8:32] = 40.0
    volume[:, 12:18, 12:26] = -850.0
    volume[:, 20:22, 20:22] = 700.0
    volume[:, :6, :6] = -3024.0
    return volume + torch.from_numpy(np.random.default_rng(0).normal(0, 10, volume.shape)).float()


def test_hounsfield_units_pass_as_they_are(chest):
    assert CheckHounsfield()(chest) is chest


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v.clamp(min=-1000) + 1024,  # stored values, intercept lost
        lambda v: v - 1024,  # intercept applied twice
        lambda v: (v.clamp(-1000, 400) + 1000) / 1400,  # scaled to [0, 1]
        lambda v: ((v.clamp(-160, 240) + 160) / 400 * 255).round(),  # a picture of a window
        lambda v: 0.02 * (v.clamp(min=-1000) / 1000 + 1),  # attenuation per mm
        lambda v: v.clamp(min=-1000) * 4,  # slope applied twice
    ],
)
def test_other_numbers_are_refused(chest, change):
    with pytest.raises(VolumeError, match="expected Hounsfield units"):
        CheckHounsfield()(change(chest))
