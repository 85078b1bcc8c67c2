"""Whether neighbouring slices fit each other, as they do in real volumes.

The measurable counterpart of a reader's "consistency between slices" (Khader et al. 2023, table 1).
"""

from __future__ import annotations

import numpy as np

__all__ = ["continuity_distance", "slice_correlations"]


def slice_correlations(volume: np.ndarray, axis: int) -> np.ndarray:
    """Pearson correlation of each slice with the next.

    Args:
        volume: (H, W, D).
        axis: 0, 1 or 2, across which to cut.

    Returns:
        One number per pair of neighbours; 1 where both are constant, 0 where one is.
    """
    slices = np.moveaxis(np.asarray(volume, dtype=np.float64), axis, 0).reshape(volume.shape[axis], -1)
    centred = slices - slices.mean(1, keepdims=True)
    norms = np.linalg.norm(centred, axis=1)
    products = (centred[:-1] * centred[1:]).sum(1)
    flat = norms <= 1e-6 * max(float(norms.max()), 1e-12)
    scale = np.where(flat[:-1] | flat[1:], 1.0, norms[:-1] * norms[1:])
    return np.where(flat[:-1] & flat[1:], 1.0, np.where(flat[:-1] | flat[1:], 0.0, products / scale))


def continuity_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Mean over places of the Kolmogorov-Smirnov statistic: 0 for equal distributions, 1 for disjoint ones.

    Args:
        x: correlations of n volumes, (n, P), as :func:`slice_correlations` gives them.
        y: of m volumes, (m, P).
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    values = np.concatenate([x, y])
    order = np.argsort(values, axis=0, kind="stable")
    steps = np.concatenate([np.full(x.shape, 1 / len(x)), np.full(y.shape, -1 / len(y))])
    gap = np.abs(np.cumsum(np.take_along_axis(steps, order, axis=0), axis=0))
    ranked = np.take_along_axis(values, order, axis=0)
    tied = np.zeros(gap.shape, dtype=bool)
    tied[:-1] = ranked[:-1] == ranked[1:]  # within equal values the distribution functions have not moved on
    return float(np.where(tied, 0.0, gap).max(axis=0).mean())
