"""What the denoiser is given and what it should say, in training and in validation."""

from __future__ import annotations

import math
from typing import Any

import torch
from monai.engines import DiffusionPrepareBatch
from monai.networks.schedulers.scheduler import Scheduler
from torch import Tensor

from medical_diffusion_components.chance import (
    draw_integers,
    draw_normal,
    draw_stratified,
    draw_uniform,
    seed_of_name,
    torch_generator,
)
from medical_diffusion_components.diffusion.latent_scaling import LatentScaling
from medical_diffusion_components.diffusion.rectified_flow import FlowScheduler

__all__ = ["HeldOutPrepareBatch", "TrainingPrepareBatch"]


class TrainingPrepareBatch(DiffusionPrepareBatch):
    """MONAI's diffusion batch, with the target that the scheduler's ``prediction_type`` asks for.

    That is the noise e (``epsilon``, the paper's choice), the clean latent x (``sample``), or
    v = sqrt(a_t) e - sqrt(1 - a_t) x (``v_prediction``; Salimans and Ho, ICLR 2022), or e - x (``flow``, whose timesteps
    have a logit-normal distribution and are no whole numbers). Noise and timesteps are those of the rows' places in the
    global batch, however many processes share it.

    Args:
        scheduler: MONAI scheduler; its length is that of the schedule.
        condition_name: entry of the batch with the conditions, (B, V), NaN where missing; None for no condition.
        latent_scaling: the generator's, applied to the latents of the batch; None leaves them as they are.
        stratified: spread the timesteps evenly over the batch, rather than each by itself (the paper's choice).
        condition_dropout: probability with which each condition of a row is hidden from the network, and, besides, all of
            them together: so it learns every conditional distribution and the unconditional one, which guidance needs (Ho
            and Salimans, "Classifier-Free Diffusion Guidance", 2022).

    Raises:
        ValueError: a ``condition_dropout`` outside [0, 1).
    """

    def __init__(
        self,
        scheduler: Scheduler,
        condition_name: str | None = None,
        latent_scaling: LatentScaling | None = None,
        stratified: bool = False,
        condition_dropout: float = 0.0,
    ) -> None:
        if not 0 <= condition_dropout < 1:
            raise ValueError(f"condition_dropout must be in [0, 1), got {condition_dropout}")
        super().__init__(int(scheduler.num_train_timesteps), condition_name)
        self.condition_dropout = condition_dropout
        self.scheduler = scheduler
        self.latent_scaling = latent_scaling
        self.stratified = stratified

    def __call__(
        self, batchdata: dict, device: str | torch.device | None = None, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[Tensor, Tensor, tuple, dict]:
        """Scaled latents, target, no arguments, and noise, timesteps and condition by name."""
        images = self._latents(batchdata, device, non_blocking, **kwargs)
        images, target, args, inputs = super().__call__({**batchdata, "image": images}, device, non_blocking, **kwargs)
        if self.condition_name is not None:
            inputs["condition"] = self._dropped(inputs["condition"])
        return images, target, args, inputs

    def _dropped(self, conditions: Tensor) -> Tensor:
        """Conditions (B, V) with NaN, missing, in place of what is hidden; drawn for the rows of the global batch."""
        rows, variables = conditions.shape
        draws = torch.stack([draw_uniform(rows, False, conditions.device) for _ in range(variables + 1)], dim=1)
        hidden = draws < self.condition_dropout  # the first V each by itself, the last all together
        return conditions.masked_fill(hidden[:, :-1] | hidden[:, -1:], math.nan)

    def _latents(
        self, batchdata: dict, device: str | torch.device | None = None, non_blocking: bool = False, **kwargs: Any
    ) -> Tensor:
        images = batchdata["image"].to(device, non_blocking=non_blocking, **kwargs)
        return images if self.latent_scaling is None else self.latent_scaling(images)

    def get_noise(self, images: Tensor) -> Tensor:
        """Standard normal noise for latents ``images`` (B, C, h, w, d)."""
        return draw_normal(images)

    def get_timesteps(self, images: Tensor) -> Tensor:
        """A random timestep for each latent, (B,)."""
        if isinstance(self.scheduler, FlowScheduler):
            places = draw_uniform(images.shape[0], self.stratified, images.device)
            return self.scheduler.logit_normal(places)
        draw = draw_stratified if self.stratified else draw_integers
        return draw(self.num_train_timesteps, images.shape[0], images.device)

    def get_target(self, images: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Target of the loss for latents ``images`` (B, C, h, w, d) with ``noise`` added at ``timesteps`` (B,)."""
        if self.scheduler.prediction_type == "sample":
            return images
        if self.scheduler.prediction_type in ("v_prediction", "flow"):
            return self.scheduler.get_velocity(images, noise, timesteps)
        return noise


class HeldOutPrepareBatch(TrainingPrepareBatch):
    """The batch with noise and timestep that follow from case and draw.

    The loss of a held-out latent is then a number that only the network changes, so epochs can be compared. Draw k of n
    has its timestep in the k-th of n equal parts of the schedule.

    Needs the entries ``case_id``, ``draw`` and ``draws`` in the batch (see ``held_out_draws``).

    Args:
        scheduler: MONAI scheduler.
        condition_name: entry of the batch that the network is conditioned on; None for no condition.
        latent_scaling: as for training.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        condition_name: str | None = None,
        latent_scaling: LatentScaling | None = None,
    ) -> None:
        super().__init__(scheduler, condition_name, latent_scaling)

    def __call__(
        self, batchdata: dict, device: str | torch.device | None = None, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[Tensor, Tensor, tuple, dict]:
        images = self._latents(batchdata, device, non_blocking, **kwargs)
        drawn = [
            self._draw(case_id, int(draw), int(draws), images.shape[1:])
            for case_id, draw, draws in zip(batchdata["case_id"], batchdata["draw"], batchdata["draws"])
        ]
        noise = torch.stack([noise for noise, _ in drawn]).to(images)
        timesteps = torch.tensor([timestep for _, timestep in drawn], device=images.device)
        inputs = {"noise": noise, "timesteps": timesteps}
        if self.condition_name is not None:
            inputs["condition"] = batchdata[self.condition_name].to(device, non_blocking=non_blocking, **kwargs)
        return images, self.get_target(images, noise, timesteps), (), inputs

    def _draw(self, case_id: str, draw: int, draws: int, shape: torch.Size) -> tuple[Tensor, int]:
        generator = torch_generator(seed_of_name(f"{case_id}/{draw}", 6))
        place = (draw + torch.rand(1, generator=generator).item()) / draws
        return torch.randn(shape, generator=generator), int(place * self.num_train_timesteps)
