"""Learning rate that rises along a line and falls along a cosine.

Goyal et al., "Accurate, Large Minibatch SGD", 2017 (warm-up); Loshchilov and Hutter, "SGDR", ICLR 2017 (cosine).
"""

from __future__ import annotations

import math

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

__all__ = ["WarmupCosine"]


class WarmupCosine(LRScheduler):
    """Step s of the optimiser (from 0) has the rate r(s) times min(1, (s + 1) / warmup).

    r falls along half a cosine from the optimiser's rate at the first step to ``final`` times it after ``total`` steps, and
    stays there. The rate follows from s alone, so a resumed training has that of an uninterrupted one to the bit.

    Args:
        optimizer: its groups keep their ratio.
        total: optimiser steps of the whole training.
        warmup: optimiser steps until the rate is reached; 0 for none.
        final: share of the rate at the end, in [0, 1]; 1 is a constant rate.

    Raises:
        ValueError: fewer than one step in total, a negative warm-up, or a share outside [0, 1].
    """

    def __init__(self, optimizer: Optimizer, total: int, warmup: int = 0, final: float = 1.0) -> None:
        if total < 1 or warmup < 0:
            raise ValueError(f"expected at least one step in total and no negative warm-up, got {total} and {warmup}")
        if not 0 <= final <= 1:
            raise ValueError(f"the final share of the learning rate must be in [0, 1], got {final}")
        self.total = total
        self.warmup = warmup
        self.final = final
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        """Rates of the optimiser's groups at step ``last_epoch``, as torch calls the number of steps made."""
        step = self.last_epoch
        fallen = 0.5 - 0.5 * math.cos(math.pi * min(step / self.total, 1.0))
        factor = 1.0 - (1.0 - self.final) * fallen
        if step < self.warmup:
            factor *= (step + 1) / self.warmup
        return [rate * factor for rate in self.base_lrs]
