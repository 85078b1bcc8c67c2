"""What every space has in which sets of volumes are compared."""

from __future__ import annotations

import numpy as np
from torch import nn

__all__ = ["FeatureSpace"]


class FeatureSpace(nn.Module):
    """Where volumes are points: (C, H, W, D) in [-1, 1] -> (F,) float64.

    Attributes:
        counts: whether the space is a judge; False for one that is there for comparison alone.
        one_scale: whether features have one unit, so that they can be compared without being standardised.
        description: for the report.
    """

    counts: bool
    one_scale: bool
    description: str

    @staticmethod
    def standardise(features: np.ndarray, training: np.ndarray) -> np.ndarray:
        """(n, F) in the units that distances are measured in, which follow from the training volumes, (N, F)."""
        raise NotImplementedError
