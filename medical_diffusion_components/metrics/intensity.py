"""Whether volumes are as bright and as contrasted as real ones, wherever their voxels lie."""

from __future__ import annotations

import numpy as np

__all__ = ["intensity_distance", "intensity_quantiles"]


def intensity_quantiles(volume: np.ndarray, count: int = 64) -> np.ndarray:
    """Intensities below which 1/(2 count), 3/(2 count), ... of the voxels lie, (count,)."""
    return np.quantile(volume, (np.arange(count) + 0.5) / count)


def intensity_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Wasserstein distance of order 1 between the mean distributions of intensity of two sets, in units of intensity.

    Args:
        x: quantiles of n volumes, (n, P).
        y: of m volumes, (m, P).
    """
    return float(np.abs(x.mean(0) - y.mean(0)).mean())
