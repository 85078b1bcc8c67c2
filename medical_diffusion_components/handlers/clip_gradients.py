"""Clipping of gradients in MONAI's trainers, which offer none.

Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks", ICML 2013.
"""

from __future__ import annotations

from ignite.engine import Engine
from monai.engines.utils import IterationEvents
from torch import nn

from medical_diffusion_components.handlers.optimiser_steps import optimiser_step

__all__ = ["ClipGradients"]


class ClipGradients:
    """Before each optimiser step, shrink the gradient of ``network`` to a norm of at most ``max_norm``.

    Args:
        network: whose gradient; if distributed, it is that of the global batch.
        max_norm: largest norm, of what the iterations of an optimiser step have accumulated; None leaves it as it is.

    Raises:
        ValueError: a norm that is not positive.
    """

    def __init__(self, network: nn.Module, max_norm: float | None) -> None:
        if max_norm is not None and not max_norm > 0:
            raise ValueError(f"the gradient's largest norm must be positive, or None for any, got {max_norm}")
        self.network = network
        self.max_norm = max_norm

    def attach(self, engine: Engine) -> None:
        if self.max_norm is not None:
            engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        if self.max_norm is not None and optimiser_step(engine) is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.max_norm)
