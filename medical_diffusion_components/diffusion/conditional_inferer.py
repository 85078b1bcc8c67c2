"""How a generator is called: with starting noise, and with conditions where there are any."""

from __future__ import annotations

from typing import Any

from monai.inferers import Inferer
from torch import Tensor

__all__ = ["ConditionalInferer"]


class ConditionalInferer(Inferer):
    """Noise latents (B, C, h, w, d) -> what the generator makes of them.

    Args:
        default: conditions (V,) of noise that comes without any, as an annotation server passes it; None: the generator has
            none.
    """

    def __init__(self, default: Tensor | None = None) -> None:
        super().__init__()
        self.default = default

    def __call__(
        self, inputs: Tensor, network: Any, conditions: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        if conditions is None and self.default is not None:
            conditions = self.default.expand(len(inputs), -1)
        return network(inputs) if conditions is None else network(inputs, conditions.to(inputs.device))
