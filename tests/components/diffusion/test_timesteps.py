from __future__ import annotations

import pytest
import torch
from monai.networks.schedulers import DDPMScheduler

from medical_diffusion_components.diffusion.timesteps import evenly_in_log_snr, evenly_in_time, half_log_snr

SCHEDULES = {"cosine": {}, "linear_beta": {"beta_start": 1e-4, "beta_end": 0.02}}


def alphas(total: int, name: str = "cosine") -> torch.Tensor:
    return DDPMScheduler(total, name, **SCHEDULES[name]).alphas_cumprod


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("evenly", [evenly_in_time, evenly_in_log_snr])
def test_every_number_of_steps_gives_as_many_different_timesteps_from_last_to_first(evenly, name):
    for total in (1, 2, 3, 11, 40):
        for steps in range(1, total + 1):
            times = evenly(alphas(total, name), steps)
            assert times.dtype == torch.int64 and len(times) == steps
            assert times[0] == total - 1 and (times.diff() < 0).all() and (steps == 1 or times[-1] == 0)


def test_steps_in_log_snr_are_as_even_as_whole_timesteps_allow():
    a = alphas(3000, "linear_beta")
    snr = half_log_snr(a.double())
    for steps in (4, 9, 20):
        times = evenly_in_log_snr(a, steps)
        wanted = torch.linspace(float(snr[-1]), float(snr[0]), steps, dtype=torch.float64)
        nearest = torch.stack([(snr - value).abs().argmin() for value in wanted])
        assert (times - nearest).abs().max() <= 2


def test_one_timestep_that_is_a_long_way_leaves_the_rest_even():
    # half the log-SNR at t = 6, 5, ..., 0 is -6, -2, -1, 0, 1, 2, 6
    a = torch.sigmoid(2 * torch.tensor([6.0, 2.0, 1.0, 0.0, -1.0, -2.0, -6.0], dtype=torch.float64))
    assert evenly_in_log_snr(a, 3).tolist() == [6, 3, 0]
    assert evenly_in_log_snr(a, 6).tolist() == [6, 5, 3, 2, 1, 0]  # shares 2.4, 2, 2, 2.5, 4
    assert evenly_in_log_snr(a, 7).tolist() == [6, 5, 4, 3, 2, 1, 0]


@pytest.mark.parametrize("a", [[0.9, 0.5, 0.0], [1.0, 0.5, 0.1], [0.9, 0.5, 0.5]])
def test_a_schedule_without_a_falling_finite_log_snr_is_refused(a):
    with pytest.raises(ValueError, match="expected alphas_cumprod to fall between 1 and 0"):
        evenly_in_log_snr(torch.tensor(a), 2)


def test_half_log_snr_is_the_logarithm_of_the_ratio_of_standard_deviations():
    a = torch.tensor([0.5, 0.8, 0.1], dtype=torch.float64)
    torch.testing.assert_close(half_log_snr(a).exp(), a.sqrt() / (1 - a).sqrt())
