from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.networks.schedulers import DDPMScheduler

from medical_diffusion_components.diffusion.cosine_schedule import CosineScheduler, cosine_betas


@pytest.mark.parametrize("steps", [1, 12, 300, 1000])
def test_schedule_is_the_papers_equation_in_float64(steps: int) -> None:
    t = np.arange(steps + 1) / steps
    f = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
    betas = np.minimum(1 - f[1:] / f[:-1], 0.9999)
    np.testing.assert_allclose(cosine_betas(steps), betas, rtol=1e-9)
    scheduler = CosineScheduler(steps)
    np.testing.assert_allclose(scheduler.alphas_cumprod, np.cumprod(1 - betas), rtol=1e-6)
    np.testing.assert_allclose(scheduler.betas, betas, rtol=1e-6)
    assert scheduler.alphas_cumprod.dtype == torch.float32 and scheduler.betas[-1] == np.float32(0.9999)


def test_against_monais_only_the_last_steps_differ() -> None:
    ours, theirs = CosineScheduler(300), DDPMScheduler(300, schedule="cosine")
    torch.testing.assert_close(ours.alphas_cumprod[:-1], theirs.alphas_cumprod[:-1], rtol=1e-3, atol=1e-6)
    assert float(theirs.alphas_cumprod[-1] / ours.alphas_cumprod[-1]) == pytest.approx(10, rel=0.01)
    for steps in (ours.alphas_cumprod, theirs.alphas_cumprod):
        assert (steps.diff() < 0).all() and 0 < steps[-1] and steps[0] < 1


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_the_prediction_type_is_passed_on(prediction_type: str) -> None:
    assert CosineScheduler(5, prediction_type).prediction_type == prediction_type
