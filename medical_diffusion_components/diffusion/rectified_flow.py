"""Rectified flow: straight paths from noise to latents.

Liu, Gong and Liu, "Flow Straight and Fast", ICLR 2023: x_t = (1 - t) x + t e with t in [0, 1], and the denoiser predicts
the velocity e - x. Times from a logit-normal distribution, and their shift, are Esser et al.'s, "Scaling Rectified Flow
Transformers for High-Resolution Image Synthesis", ICML 2024, sections 3.1 and 5.3.2.

Divided by sqrt((1 - t)^2 + t^2), x_t is a diffusion with alpha-bar = (1 - t)^2 / ((1 - t)^2 + t^2). So the generator's
samplers work with it: DDIM is then Euler's method on the flow, and DPM-Solver++(2M) a method of second order.
"""

from __future__ import annotations

import torch
from monai.networks.schedulers import DDPMScheduler, NoiseSchedules
from torch import Tensor

from medical_diffusion_components.diffusion.cosine_schedule import CosineScheduler

__all__ = ["FlowScheduler", "noise_scheduler"]

_NAME = "rectified_flow"


def shifted(place: Tensor, shift: float) -> Tensor:
    """Times from places in [0, 1]: t = s p / (1 + (s - 1) p); above 1, s moves them towards noise."""
    return shift * place / (1 + (shift - 1) * place)


@NoiseSchedules.add_def(_NAME, "Rectified flow, scaled to constant variance")
def _flow(num_train_timesteps: int, shift: float) -> tuple[Tensor, Tensor, Tensor]:
    place = torch.arange(1, num_train_timesteps + 1, dtype=torch.float64) / (num_train_timesteps + 1)
    time = shifted(place, shift)
    alphas_cumprod = (1 - time).square() / ((1 - time).square() + time.square())
    alphas = alphas_cumprod / torch.cat([torch.ones(1, dtype=torch.float64), alphas_cumprod[:-1]])
    return (1 - alphas).float(), alphas.float(), alphas_cumprod.float()


class FlowScheduler(DDPMScheduler):
    """MONAI's scheduler for rectified flow, with ``prediction_type`` ``flow``.

    The denoiser's timestep is T + 1 times the place of t before the shift, less 1: any number in [-1, T] in training, a
    whole number from 0 to T - 1 where samplers and validation look.

    Args:
        num_train_timesteps: T.
        shift: of the times, positive; 1 for none.
        mean: of the logit of a training place.
        std: of the same, positive.

    Raises:
        ValueError: a shift or a standard deviation that is not positive.
    """

    def __init__(self, num_train_timesteps: int = 300, shift: float = 1.0, mean: float = 0.0, std: float = 1.0) -> None:
        if not shift > 0 or not std > 0:
            raise ValueError(f"shift and std of a flow must be positive, got {shift} and {std}")
        super().__init__(num_train_timesteps, schedule=_NAME, shift=float(shift))
        self.prediction_type = "flow"
        self.shift = float(shift)
        self.mean = float(mean)
        self.std = float(std)

    def time(self, timesteps: Tensor) -> Tensor:
        """t in [0, 1] of the denoiser's timesteps (B,), float32."""
        return shifted((timesteps.float() + 1) / (self.num_train_timesteps + 1), self.shift)

    def logit_normal(self, uniform: Tensor) -> Tensor:
        """Timesteps (B,) float32 from ``uniform`` numbers in (0, 1), (B,): the logit of their place is normal."""
        place = torch.sigmoid(self.mean + self.std * torch.special.ndtri(uniform.double()))
        return (place * (self.num_train_timesteps + 1) - 1).float()

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """(1 - t) x + t e for latents (B, ...)."""
        time = self.time(timesteps).view(-1, *[1] * (original_samples.ndim - 1)).to(original_samples)
        return (1 - time) * original_samples + time * noise

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """e - x, whatever the timestep."""
        return noise - sample


def noise_scheduler(
    num_train_timesteps: int = 300, prediction_type: str = "epsilon", flow_shift: float = 1.0
) -> DDPMScheduler:
    """The schedule that goes with a ``prediction_type``: rectified flow for ``flow``, else the cosine schedule.

    Args:
        num_train_timesteps: T.
        prediction_type: ``epsilon``, ``sample``, ``v_prediction`` or ``flow``.
        flow_shift: see :class:`FlowScheduler`; nothing else has it.
    """
    if prediction_type == "flow":
        return FlowScheduler(num_train_timesteps, flow_shift)
    return CosineScheduler(num_train_timesteps, prediction_type)
