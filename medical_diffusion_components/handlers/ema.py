"""Moving averages of weights.

Polyak and Juditsky, 1992; for diffusion models Ho et al., "Denoising Diffusion Probabilistic Models", NeurIPS 2020. The
power function in place of the exponential: Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion
Models", CVPR 2024, section 3.1.
"""

from __future__ import annotations

import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn

from medical_diffusion_components.handlers.optimiser_steps import optimiser_step
from medical_diffusion_components.weights import unwrap

__all__ = ["ExponentialMovingAverage"]


class ExponentialMovingAverage:
    """Keep ``averaged`` a moving average of the weights of ``source``: a <- decay a + (1 - decay) w.

    Steps are optimiser steps, counted as MONAI's trainer makes them: every ``accumulation_steps`` iterations, and at the
    end of every epoch for what is left over. Every ``every`` steps the average moves; before step ``start`` it is a copy.
    Without a ``start`` the average would remember the random initialisation.

    With ``gamma`` it is a power-function average instead: the n-th update has the decay (1 - 1/n)^(gamma + 1), so that the
    weights of update m of n count in proportion to m^gamma, a share of the training however long it has been. The first
    update is a copy, and neither ``decay`` nor ``start`` counts.

    Args:
        source: the network that is trained.
        averaged: a network of the same architecture that receives the average.
        decay: share of the old average, in [0, 1).
        every: steps between two updates.
        start: first step whose update averages rather than copies.
        gamma: exponent of the power-function average, above -1; None for the exponential one.

    Raises:
        ValueError: a decay outside [0, 1) or a gamma that is not above -1.
    """

    def __init__(
        self,
        source: nn.Module,
        averaged: nn.Module,
        decay: float = 0.995,
        every: int = 10,
        start: int = 2000,
        gamma: float | None = None,
    ) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        if gamma is not None and not gamma > -1:
            raise ValueError(f"gamma must be above -1, got {gamma}")
        self.source = unwrap(source)
        self.averaged = averaged.requires_grad_(False).eval()
        self.decay = decay
        self.every = every
        self.start = start
        self.gamma = gamma
        averaged.load_state_dict(self.source.state_dict())

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    @torch.no_grad()
    def __call__(self, engine: Engine) -> None:
        step = optimiser_step(engine)
        if step is None or step % self.every:
            return
        weight = self._weight(step)
        new: list[Tensor] = list(self.source.parameters())
        old: list[Tensor] = list(self.averaged.parameters())
        torch._foreach_lerp_(old, new, weight)
        for old_buffer, new_buffer in zip(self.averaged.buffers(), self.source.buffers()):
            old_buffer.copy_(new_buffer)

    def _weight(self, step: int) -> float:
        """Share of the new weights in the average."""
        if self.gamma is None:
            return 1 - self.decay if step >= self.start else 1.0
        return 1 - (1 - self.every / step) ** (self.gamma + 1)
