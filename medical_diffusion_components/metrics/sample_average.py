"""The mean over samples, whatever the size of their batches."""

from __future__ import annotations

from ignite.metrics import Average
from torch import Tensor

__all__ = ["SampleAverage"]


class SampleAverage(Average):
    """Mean of values that come one per sample, (B,), as a number; over all ranks.

    Ignite's ``Average`` takes a vector for a single sample, and a mean per batch counts a smaller last batch like a full
    one.

    Args:
        output_transform: takes the values (B,) from ``engine.state.output``.
    """

    def update(self, output: Tensor) -> None:
        """Count every sample of a batch."""
        super().update(output.reshape(-1, 1))

    def compute(self) -> float:
        """The mean of all samples so far."""
        return float(super().compute())
