"""Any MONAI inferer under bfloat16 autocast, on any device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor

__all__ = ["AutocastInferer"]


class AutocastInferer(Inferer):
    """Run ``inferer`` in bfloat16 if ``amp``; the prediction comes back in float32, so that losses are exact.

    The ``amp`` of MONAI's engines is CUDA's, with loss scaling; this one works on CPUs, too, and scales nothing.

    Args:
        inferer: MONAI inferer.
        amp: whether to use bfloat16 autocast.
    """

    def __init__(self, inferer: Inferer, amp: bool = False) -> None:
        super().__init__()
        self.inferer = inferer
        self.amp = amp

    def __call__(self, inputs: Tensor, network: Callable, *args: Any, **kwargs: Any) -> Tensor:
        with torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=self.amp):
            return self.inferer(inputs, network, *args, **kwargs).float()
