"""How many different volumes a set holds, in effect.

The Vendi score of order 2, which is the exponential of the Renyi kernel entropy: Friedman and Dieng, "The Vendi Score",
TMLR 2023; Jalali et al., NeurIPS 2023. Unlike the order 1 it hardly grows with the size of the set.
"""

from __future__ import annotations

import numpy as np

from medical_diffusion_components.metrics.mmd import GaussianKernel

__all__ = ["effective_number"]


def effective_number(x: np.ndarray, bandwidth: float) -> float:
    """1 / |K / n|^2 with the Frobenius norm: 1 for n copies of one volume, n for volumes far apart.

    Args:
        x: features (n, F).
        bandwidth: of the Gaussian kernel; sets are comparable only with one and the same.
    """
    x = np.asarray(x, dtype=np.float64)
    return float(1 / np.square(GaussianKernel(bandwidth)(x, x) / len(x)).sum())
