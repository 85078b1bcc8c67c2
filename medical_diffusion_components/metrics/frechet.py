"""Frechet distance between two sets of features, as if both were Gaussian.

Dowson and Landau, "The Frechet distance between multivariate normal distributions", J. Multivariate Analysis 12, 1982;
for images Heusel et al., NeurIPS 2017. The matrix square root is not needed: with centred features X (n, F) and Y (m, F),
tr (S_x S_y)^(1/2) is the nuclear norm of X Y^T / sqrt((n - 1)(m - 1)), exact also where n < F.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

__all__ = ["FrechetDistance", "frechet_distance"]


class FrechetDistance(NamedTuple):
    """The squared distance and its two parts; ``value`` is their sum."""

    value: float
    mean_term: float  # |mean of x - mean of y|^2
    covariance_term: float  # tr S_x + tr S_y - 2 tr (S_x S_y)^(1/2)


def frechet_distance(x: np.ndarray, y: np.ndarray) -> FrechetDistance:
    """Squared Frechet distance of the Gaussians that fit two sets.

    It is biased upwards where there are few members: compare it at one and the same n only.

    Args:
        x, y: features (n, F) and (m, F), n, m > 1.

    Raises:
        ValueError: features of different lengths, or fewer than two members.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(f"expected features (n, F) and (m, F) with n, m > 1, got shapes {x.shape} and {y.shape}")
    mean_term = float(np.square(x.mean(0) - y.mean(0)).sum())
    roots = [_triangular((z - z.mean(0)) / np.sqrt(len(z) - 1)) for z in (x, y)]
    traces = [float(np.square(root).sum()) for root in roots]
    shared = float(np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum())
    covariance_term = max(traces[0] + traces[1] - 2 * shared, 0.0)
    return FrechetDistance(mean_term + covariance_term, mean_term, covariance_term)


def _triangular(centred: np.ndarray) -> np.ndarray:
    """(n, F) -> (min(n, F), F) with the same products of columns: many members cost no more than F."""
    return np.asarray(np.linalg.qr(centred, mode="r")) if len(centred) > centred.shape[1] else centred
