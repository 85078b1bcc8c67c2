from __future__ import annotations

import numpy as np
import pytest
import torch

from medical_diffusion_components.preparation.steps.notes import NOTES_KEY
from medical_diffusion_components.preparation.steps.scale_to_range import ScaleToRange, ScaleToRanged
from medical_diffusion_components.transforms.volume_error import VolumeError


def volume():
    return torch.from_numpy(np.random.default_rng(0).normal(50, 20, (1, 10, 20, 30)).astype(np.float32))


def test_the_volumes_own_limits_become_exactly_minus_one_and_one():
    got = ScaleToRange()(volume())
    assert got.min() == -1 and got.max() == 1
    np.testing.assert_allclose(
        got.mean(), 2 * (volume().mean() - volume().min()) / np.ptp(volume().numpy()) - 1, atol=1e-6
    )


def test_a_window_gives_an_intensity_the_same_value_in_every_volume():
    scale = ScaleToRange("window", (-1000.0, 1000.0))
    hounsfield = torch.tensor([-3024.0, -1000.0, 0.0, 500.0, 3000.0]).reshape(1, 1, 1, 5)
    assert scale(hounsfield).flatten().tolist() == [-1, -1, 0, 0.5, 1]


def test_percentiles_equal_numpys_and_what_lies_beyond_is_cut_off():
    img = volume()
    img[0, 0, 0, 0] = 1e6
    got = ScaleToRange("percentiles", (1.0, 99.0))(img)
    low, high = np.percentile(img.numpy(), (1, 99))
    np.testing.assert_allclose(got, np.clip((img.numpy() - low) / (high - low) * 2 - 1, -1, 1), atol=1e-5)
    assert (got == 1).float().mean() > 0.009


def test_the_limits_are_noted_so_that_intensities_can_be_had_back():
    img = volume()
    out = ScaleToRanged("image")({"image": img, NOTES_KEY: {"skull": False}})
    low, high = out[NOTES_KEY]["intensity_limits"]
    torch.testing.assert_close((out["image"] + 1) / 2 * (high - low) + low, img)
    assert out[NOTES_KEY]["skull"] is False


def test_a_volume_without_contrast_is_refused():
    with pytest.raises(VolumeError, match="limits are 7 and 7"):
        ScaleToRange()(torch.full((1, 2, 3, 4), 7.0))


@pytest.mark.parametrize(
    "arguments", [("minmax",), ("window",), ("window", (3, 1)), ("percentiles", (0.0, 101.0)), ("window", (1, 2, 3))]
)
def test_limits_that_make_no_sense_are_refused(arguments):
    with pytest.raises(ValueError):
        ScaleToRange(*arguments)


def test_a_few_bright_voxels_that_darken_all_others_are_remarked_on():
    volume = torch.rand(1, 20, 20, 20) * 900
    assert "few_voxels_set_the_limits" not in ScaleToRanged("image")({"image": volume})["notes"]
    volume[0, 3, 3, 3] = 32767
    assert ScaleToRanged("image")({"image": volume})["notes"]["few_voxels_set_the_limits"] is True
    percentiles = ScaleToRanged("image", "percentiles", [0.0, 99.9])({"image": volume})
    assert "few_voxels_set_the_limits" not in percentiles["notes"]
