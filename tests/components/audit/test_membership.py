"""Membership by losses: areas, their errors, and losses of denoisers that are known."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from medical_diffusion_components.audit import area_under_curve, denoising_losses, membership_scores
from medical_diffusion_components.diffusion import LATENT_SCALINGS, LatentDiffusionGenerator, noise_scheduler


def test_area_is_that_of_scikit_learn_with_ties() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 6, 23) + 1.0, rng.integers(0, 6, 31) * 1.0
    expected = roc_auc_score([1] * 23 + [0] * 31, [*x, *y])
    assert area_under_curve(x, y).value == pytest.approx(expected)


def test_standard_error_is_delongs_by_hand() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(0.5, 1, 9), rng.normal(0, 1, 13)
    wins = (x[:, None] > y[None]) + 0.5 * (x[:, None] == y[None])
    expected = wins.mean(1).var(ddof=1) / len(x) + wins.mean(0).var(ddof=1) / len(y)
    assert area_under_curve(x, y).error == pytest.approx(expected**0.5)


def test_standard_error_is_the_scatter_of_redraws() -> None:
    rng = np.random.default_rng(2)
    found = [area_under_curve(rng.normal(0.8, 1, 40), rng.normal(0, 1, 60)) for _ in range(400)]
    assert np.std([area.value for area in found]) == pytest.approx(np.mean([area.error for area in found]), rel=0.12)


def test_scores_weigh_timesteps_by_the_held_out_scatter() -> None:
    """A timestep at which losses are a thousand times as large must not drown the others."""
    rng = np.random.default_rng(3)
    training = np.stack([rng.normal(0, 1, 50) - 3, 1000 * rng.normal(0, 1, 50)], axis=1)
    held_out = np.stack([rng.normal(0, 1, 50), 1000 * rng.normal(0, 1, 50)], axis=1)
    members, others = membership_scores(training, held_out)
    assert area_under_curve(members, others).value > 0.9


class Knowing(nn.Module):
    """Knows one latent by heart, and so what the target is for it."""

    def __init__(self, latent: torch.Tensor, scheduler, prediction: str) -> None:
        super().__init__()
        self.latent, self.alphas, self.kind = latent, scheduler.alphas_cumprod, prediction

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        a = self.alphas[timesteps[0]]
        x = x * (a.sqrt() + (1 - a).sqrt()) if self.kind == "flow" else x
        noise = (x - a.sqrt() * self.latent) / (1 - a).sqrt()
        velocity = a.sqrt() * noise - (1 - a).sqrt() * self.latent
        targets = {"epsilon": noise, "v_prediction": velocity, "flow": noise - self.latent}
        return targets.get(self.kind, self.latent.expand_as(x))


@pytest.mark.parametrize("scaling", LATENT_SCALINGS)
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction", "flow"])
def test_a_latent_known_by_heart_has_no_loss(prediction: str, scaling: str) -> None:
    latents = torch.randn(6, 2, 3, 4, 2)
    scheduler = noise_scheduler(50, prediction)
    stage = nn.Identity()
    generator = LatentDiffusionGenerator(stage, nn.Identity(), scheduler, "ddim", 5, (2, 3, 4, 2))
    generator.latent_scaling.fit(scaling, [latents])
    generator.denoiser = Knowing(generator.latent_scaling(latents[:1]), scheduler, prediction)
    losses = denoising_losses(generator, latents, batch_size=4)
    assert losses.shape == (6, 5)
    assert losses[0].max() < 1e-3
    assert losses[1:].min() > 0.05


def test_the_same_noise_for_every_latent_whatever_the_batch() -> None:
    latents = torch.randn(1, 2, 3, 4, 2).expand(5, -1, -1, -1, -1)
    generator = SimpleNamespace(
        eval=lambda: None,
        alphas_cumprod=torch.linspace(0.99, 0.01, 20),
        prediction=0,
        denoiser=lambda x, timesteps: 0.5 * x,
        latent_scaling=lambda latent: latent,
    )
    losses = denoising_losses(generator, latents, batch_size=2)
    assert np.ptp(losses, axis=0).max() < 1e-6
