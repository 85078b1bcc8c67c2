from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from medical_diffusion_components.evaluation.spectrum import (
    high_frequency_amplitude,
    nyquist_excess,
    power_along,
    radial_power,
)

SIZE = (16, 20, 24)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_wave_has_its_power_at_its_frequency(axis: int) -> None:
    shape = [1, 1, 1]
    shape[axis] = SIZE[axis]
    wave = np.cos(2 * np.pi * 3 / SIZE[axis] * np.arange(SIZE[axis])).reshape(shape) * np.ones(SIZE)
    power = power_along(wave, axis)
    assert power.argmax() == 3 and power[3] == pytest.approx((SIZE[axis] / 2) ** 2)
    assert power.sum() == pytest.approx(power[3])


def test_white_noise_has_no_excess_and_a_checkerboard_has() -> None:
    noise = np.random.default_rng(0).normal(size=(40, 64, 64))
    assert nyquist_excess(power_along(noise, 0)) == pytest.approx(1, abs=0.1)
    checkerboard = noise + 0.2 * (-1.0) ** np.arange(40)[:, None, None]
    assert nyquist_excess(power_along(checkerboard, 0)) > 2
    assert nyquist_excess(power_along(checkerboard, 1)) == pytest.approx(1, abs=0.1)


def test_both_numbers_by_hand() -> None:
    assert nyquist_excess(np.array([100.0, 2.0, 8.0, 12.0])) == pytest.approx(3), (
        "12 over the geometric mean of 2 and 8"
    )
    assert high_frequency_amplitude(np.array([100.0, 50.0, 7.0, 9.0])) == 4, "the upper half: root of 7 + 9"


def test_blur_lowers_the_high_frequencies() -> None:
    noise = np.random.default_rng(1).normal(size=SIZE)
    sharp, soft = (high_frequency_amplitude(radial_power(v)) for v in (noise, gaussian_filter(noise, 0.7, mode="wrap")))
    assert soft < 0.6 * sharp
    assert high_frequency_amplitude(radial_power(3 * noise)) == pytest.approx(3 * sharp)


def test_radial_power_of_white_noise_is_its_variance_everywhere() -> None:
    power = radial_power(2 * np.random.default_rng(2).normal(size=(48, 48, 48)), bins=8)
    assert power[1:] == pytest.approx(np.full(7, 4.0), rel=0.2)


def test_too_short_an_axis_is_refused() -> None:
    with pytest.raises(ValueError, match="power at four frequencies or more, got 3"):
        nyquist_excess(np.ones(3))
