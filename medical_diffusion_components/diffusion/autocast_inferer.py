"""MONAI's diffusion inferer under bfloat16 autocast, on any device."""

from __future__ import annotations

import torch
from monai.inferers import DiffusionInferer
from monai.networks.schedulers.scheduler import Scheduler
from torch import Tensor

__all__ = ["AutocastDiffusionInferer"]


class AutocastDiffusionInferer(DiffusionInferer):
    """Noise the input, let the network predict, in bfloat16 if ``amp``; the prediction comes back in float32.

    The ``amp`` of MONAI's engines is CUDA's float16 with loss scaling; this one works on CPUs, too, and scales nothing.

    Args:
        scheduler: MONAI scheduler that adds the noise.
        amp: whether to use bfloat16 autocast.
    """

    def __init__(self, scheduler: Scheduler, amp: bool = False) -> None:
        super().__init__(scheduler)
        self.amp = amp

    def __call__(self, inputs: Tensor, *args, **kwargs) -> Tensor:
        with torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=self.amp):
            return super().__call__(inputs, *args, **kwargs).float()
