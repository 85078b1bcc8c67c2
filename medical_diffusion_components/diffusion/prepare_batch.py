"""Noise and timesteps of a validation batch, the same in every epoch."""

from __future__ import annotations

import hashlib

import torch
from monai.engines import DiffusionPrepareBatch
from torch import Tensor

__all__ = ["HeldOutPrepareBatch"]


class HeldOutPrepareBatch(DiffusionPrepareBatch):
    """MONAI's diffusion batch with noise and timestep that follow from case and draw.

    The loss of a held-out latent is then a number that only the network changes, so epochs can be compared. Draw k of n
    has its timestep in the k-th of n equal parts of the schedule.

    Needs the entries ``case_id``, ``draw`` and ``draws`` in the batch (see ``held_out_draws``).

    Args:
        num_train_timesteps: length of the schedule.
        condition_name: entry of the batch that the network is conditioned on; None for no condition.
    """

    def __call__(self, batchdata: dict, device=None, non_blocking: bool = False, **kwargs):
        images = batchdata["image"].to(device, non_blocking=non_blocking, **kwargs)
        drawn = [
            self._draw(case_id, int(draw), int(draws), images.shape[1:])
            for case_id, draw, draws in zip(batchdata["case_id"], batchdata["draw"], batchdata["draws"])
        ]
        noise = torch.stack([noise for noise, _ in drawn]).to(images)
        timesteps = torch.tensor([timestep for _, timestep in drawn], device=images.device)
        inputs = {"noise": noise, "timesteps": timesteps}
        if self.condition_name is not None:
            inputs["condition"] = batchdata[self.condition_name].to(device, non_blocking=non_blocking, **kwargs)
        return images, noise, (), inputs

    def _draw(self, case_id: str, draw: int, draws: int, shape: torch.Size) -> tuple[Tensor, int]:
        seed = int.from_bytes(hashlib.sha256(f"{case_id}/{draw}".encode()).digest()[:6], "big")
        generator = torch.Generator().manual_seed(seed)
        place = (draw + torch.rand(1, generator=generator).item()) / draws
        return torch.randn(shape, generator=generator), int(place * self.num_train_timesteps)
