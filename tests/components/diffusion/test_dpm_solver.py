"""DPM-Solver++(2M) in the generator: against the paper's equations in float64, and against exact solutions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.networks.schedulers import DDPMScheduler
from torch import Tensor, nn

from medical_diffusion_components.diffusion.generator import LatentDiffusionGenerator

FINE = {"num_train_timesteps": 2000, "schedule": "linear_beta", "beta_start": 5e-5, "beta_end": 1e-2}


class Guess(nn.Module):
    """Stands for the denoiser: depends on every neighbour along H and on the timestep."""

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        t = timesteps.to(x.dtype).view(-1, 1, 1, 1, 1)
        return 0.9 * x + 0.1 * x.roll(1, 2) * torch.cos(t)


class GaussianDenoiser(nn.Module):
    """The exact prediction for data N(0, s^2): E[x0 | x_t] = sqrt(a) s^2 x_t / (a s^2 + 1 - a)."""

    def __init__(self, alphas_cumprod: Tensor, s: float, prediction_type: str) -> None:
        super().__init__()
        self.a, self.s, self.prediction_type = alphas_cumprod.double(), s, prediction_type

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        a, x = self.a[timesteps].view(-1, 1, 1, 1, 1), x.double()
        x0 = a.sqrt() * self.s**2 / (a * self.s**2 + 1 - a) * x
        noise = (x - a.sqrt() * x0) / (1 - a).sqrt()
        return {"epsilon": noise, "sample": x0, "v_prediction": a.sqrt() * noise - (1 - a).sqrt() * x0}[
            self.prediction_type
        ]


def starting_noise() -> Tensor:
    return torch.randn(2, 3, 2, 4, 3, generator=torch.Generator().manual_seed(0)).clamp(-2, 2)


def sample(denoiser: nn.Module, scheduler: DDPMScheduler, sampler: str, steps: int, noise: Tensor) -> Tensor:
    return LatentDiffusionGenerator(nn.Identity(), denoiser, scheduler, sampler, steps).eval().sample_latent(noise)


def paper(alphas_cumprod: np.ndarray, times: list[int], x: np.ndarray, prediction_type: str) -> list[np.ndarray]:
    """Every x0 of algorithm 2 of Lu et al. in their symbols, clipped; the last is the end of the ODE."""
    alpha, sigma = np.sqrt(alphas_cumprod), np.sqrt(1 - alphas_cumprod)
    lam = np.log(alpha / sigma)

    def data_prediction(x: np.ndarray, t: int) -> np.ndarray:
        out = 0.9 * x + 0.1 * np.roll(x, 1, axis=2) * np.cos(t)
        if prediction_type == "epsilon":
            out = (x - sigma[t] * out) / alpha[t]
        elif prediction_type == "v_prediction":
            out = alpha[t] * x - sigma[t] * out
        return np.clip(out, -1, 1)

    buffer = [data_prediction(x, times[0])]
    for i in range(1, len(times)):
        t, s = times[i], times[i - 1]
        h = lam[t] - lam[s]
        d = buffer[i - 1]
        if i > 1:
            r = (lam[s] - lam[times[i - 2]]) / h
            d = (1 + 1 / (2 * r)) * buffer[i - 1] - 1 / (2 * r) * buffer[i - 2]
        x = sigma[t] / sigma[s] * x - alpha[t] * np.expm1(-h) * d
        buffer.append(data_prediction(x, t))
    return buffer


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("steps", [1, 2, 3, 9, 20])
def test_equals_the_equations_of_the_paper(steps, prediction_type):
    scheduler = DDPMScheduler(20, "cosine", prediction_type=prediction_type)
    generator = LatentDiffusionGenerator(nn.Identity(), Guess(), scheduler, "dpmpp_2m", steps)
    a, times = generator.alphas_cumprod.double().numpy(), generator.timesteps.tolist()
    noise = 3 * starting_noise()  # so large that some x0 are clipped
    expected = paper(a, times, noise.double().numpy(), prediction_type)
    assert any((abs(x0) == 1).any() for x0 in expected)
    found = generator.sample_latent(noise)
    torch.testing.assert_close(found.double(), torch.from_numpy(expected[-1]), atol=2e-4, rtol=2e-4)


def relative_errors(sampler: str, steps: tuple[int, ...], prediction_type: str, s: float = 0.2) -> np.ndarray:
    """For Gaussian data the ODE keeps x_t / std(x_t), and what remains of noise at its end is taken off by x0."""
    scheduler = DDPMScheduler(prediction_type=prediction_type, **FINE)
    a = scheduler.alphas_cumprod.double()
    denoiser, noise = GaussianDenoiser(scheduler.alphas_cumprod, s, prediction_type), starting_noise()
    spread = (a * s**2 + 1 - a).sqrt()
    exact = noise.double() * spread[0] / spread[-1] * a[0].sqrt() * s**2 / spread[0] ** 2
    found = [sample(denoiser, scheduler, sampler, n, noise).double() for n in steps]
    return np.array([float((f - exact).norm() / exact.norm()) for f in found])


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_error_falls_with_the_square_of_the_step(prediction_type):
    errors = relative_errors("dpmpp_2m", (20, 40, 80), prediction_type)
    orders = np.log2(errors[:-1] / errors[1:])
    assert (orders > 1.4).all() and orders[-1] > 1.7 and errors[-1] < 4e-3


def test_error_of_ddim_falls_with_the_step_alone():
    errors = relative_errors("ddim", (40, 80, 160, 320), "epsilon")
    orders = np.log2(errors[:-1] / errors[1:])
    assert ((orders > 0.8) & (orders < 1.15)).all()


def test_ten_steps_of_second_order_are_better_than_eighty_of_first():
    for s in (0.05, 0.2):
        assert relative_errors("dpmpp_2m", (10,), "epsilon", s) < 0.7 * relative_errors("ddim", (80,), "epsilon", s)


def test_timesteps_follow_the_schedule_of_the_loaded_weights():
    trained, other = DDPMScheduler(50, "cosine"), DDPMScheduler(50, "linear_beta")
    generator = LatentDiffusionGenerator(nn.Identity(), Guess(), trained, "dpmpp_2m", 6)
    configured = LatentDiffusionGenerator(nn.Identity(), Guess(), other, "dpmpp_2m", 6)
    assert configured.timesteps.tolist() != generator.timesteps.tolist()
    configured.load_state_dict(generator.state_dict())
    assert configured.timesteps.tolist() == generator.timesteps.tolist()
