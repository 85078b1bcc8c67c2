"""The cosine noise schedule.

Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic Models", ICML 2021, equation 17: with s = 0.008, f(t) =
cos^2((t/T + s) / (1 + s) pi/2) and alpha-bar_t = f(t) / f(0), each beta_t = 1 - alpha-bar_t / alpha-bar_(t-1) is clipped.
"""

from __future__ import annotations

import torch
from monai.networks.schedulers import DDPMScheduler, NoiseSchedules
from torch import Tensor

__all__ = ["CosineScheduler", "cosine_betas"]

LARGEST_BETA = 0.9999  # Khader et al. 2023's; Nichol and Dhariwal clip to 0.999, as MONAI does
OFFSET = 0.008
_NAME = "cosine_float64"


def cosine_betas(num_train_timesteps: int, largest: float = LARGEST_BETA) -> Tensor:
    """beta_1 ... beta_T, (T,) float64."""
    time = torch.arange(num_train_timesteps + 1, dtype=torch.float64) / num_train_timesteps
    signal = torch.cos((time + OFFSET) / (1 + OFFSET) * torch.pi / 2).square()
    return (1 - signal[1:] / signal[:-1]).clamp(0.0, largest)


@NoiseSchedules.add_def(_NAME, "Cosine schedule made in float64, its last beta 0.9999")
def _cosine(num_train_timesteps: int) -> tuple[Tensor, Tensor, Tensor]:
    betas = cosine_betas(num_train_timesteps)
    alphas = 1 - betas
    return betas.float(), alphas.float(), alphas.cumprod(0).float()


class CosineScheduler(DDPMScheduler):
    """MONAI's ``DDPMScheduler`` with the cosine schedule of this module in place of its own.

    MONAI makes its own in float32 and clips betas at 0.999: of 300 steps, alpha-bar at the last is ten times as large.

    Args:
        num_train_timesteps: T.
        prediction_type: ``epsilon``, ``sample`` or ``v_prediction``.
    """

    def __init__(self, num_train_timesteps: int = 300, prediction_type: str = "epsilon") -> None:
        super().__init__(num_train_timesteps, schedule=_NAME, prediction_type=prediction_type)
