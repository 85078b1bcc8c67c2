"""Maximum mean discrepancy: how far two sets of volumes are apart as distributions.

Gretton et al., "A Kernel Two-Sample Test", JMLR 13, 2012, equation 3 (the unbiased estimate). With the polynomial kernel
on features of a network it is the kernel inception distance of Binkowski et al., "Demystifying MMD GANs", ICLR 2018.
MONAI's ``MMDMetric`` has the linear kernel alone, which sees nothing but means, and wants two sets of one size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from medical_diffusion_components.chance import numpy_generator

__all__ = [
    "GaussianKernel",
    "GaussianMixture",
    "KernelMatrices",
    "kernel_matrices",
    "median_distance",
    "mmd_squared",
    "permutation_p",
    "polynomial_kernel",
    "squared_distances",
]


class KernelMatrices(NamedTuple):
    """Similarities within and between two sets of n and m members."""

    xx: np.ndarray  # (n, n)
    yy: np.ndarray  # (m, m)
    xy: np.ndarray  # (n, m)


def polynomial_kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(x . y / F + 1)^3, the kernel of the kernel inception distance.

    Shape:
        (n, F), (m, F) -> (n, m)
    """
    return (x @ y.T / x.shape[1] + 1) ** 3


class GaussianKernel(NamedTuple):
    """exp(-|x - y|^2 / (2 bandwidth^2)). Sets are comparable only with one and the same bandwidth.

    Shape:
        (n, F), (m, F) -> (n, m)
    """

    bandwidth: float

    def __call__(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.exp(-squared_distances(x, y) / (2 * self.bandwidth**2))


@dataclass(frozen=True)
class GaussianMixture:
    """Mean of Gaussian kernels whose squared bandwidths are ``bandwidth``^2 times 1/4, 1/2, 1, 2 and 4.

    Shape:
        (n, F), (m, F) -> (n, m)
    """

    bandwidth: float

    def __call__(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        distances = squared_distances(x, y) / (2 * self.bandwidth**2)
        return np.mean([np.exp(-distances / share) for share in (0.25, 0.5, 1.0, 2.0, 4.0)], axis=0)


def median_distance(x: np.ndarray) -> float:
    """Median distance between members, the usual bandwidth (Gretton et al., section 8); of the real set, say.

    Args:
        x: (n, F), n > 1.
    """
    return float(np.sqrt(np.median(squared_distances(x, x)[np.triu_indices(len(x), 1)])))


def squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances, (n, F), (m, F) -> (n, m)."""
    squares = np.square(x).sum(1)[:, None] + np.square(y).sum(1)[None] - 2 * x @ y.T
    return squares.clip(min=0)


def kernel_matrices(
    x: np.ndarray, y: np.ndarray, kernel: Callable[[np.ndarray, np.ndarray], np.ndarray] = polynomial_kernel
) -> KernelMatrices:
    """What :func:`mmd_squared` needs, made once for all subsets; in float64.

    Args:
        x, y: features (n, F) and (m, F), of any network or of the voxels themselves; n, m > 1.
        kernel: (n, F), (m, F) -> (n, m).

    Raises:
        ValueError: features of different lengths, fewer than two members, or numbers that are not finite.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(f"expected features (n, F) and (m, F) with n, m > 1, got shapes {x.shape} and {y.shape}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("expected finite features, got NaN or infinity")
    return KernelMatrices(kernel(x, x), kernel(y, y), kernel(x, y))


def mmd_squared(kernels: KernelMatrices, x: np.ndarray | None = None, y: np.ndarray | None = None) -> float:
    """Unbiased estimate of the squared discrepancy: 0 on average for sets of one distribution, so at times below it.

    Args:
        kernels: of the two sets.
        x, y: indices of the members that count; None is all (the jackknife leaves out some).
    """
    x = np.arange(len(kernels.xx)) if x is None else x
    y = np.arange(len(kernels.yy)) if y is None else y
    return float(
        _mean_of_pairs(kernels.xx[np.ix_(x, x)])
        + _mean_of_pairs(kernels.yy[np.ix_(y, y)])
        - 2 * kernels.xy[np.ix_(x, y)].mean()
    )


def _mean_of_pairs(matrix: np.ndarray) -> float:
    """Mean without the diagonal, on which everything is paired with itself."""
    return float((matrix.sum() - np.trace(matrix)) / (len(matrix) * (len(matrix) - 1)))


def permutation_p(
    kernels: KernelMatrices, x_groups: np.ndarray, y_groups: np.ndarray, permutations: int = 999, seed: int = 0
) -> float:
    """Share of random divisions of all members that are at least as far apart as the two sets: a p-value.

    Gretton et al., section 5. Members of one group (a patient's volumes) stay together, but for one group at most, through
    which the border between the two sets may go.

    Args:
        kernels: of the two sets.
        x_groups: (n,) group of each member of the first set.
        y_groups: (m,) likewise; a group is in one of the sets only.
        permutations: how many divisions.
        seed: of the divisions.

    Returns:
        In [1 / (permutations + 1), 1].
    """
    whole = np.block([[kernels.xx, kernels.xy], [kernels.xy.T, kernels.yy]])
    groups = np.unique(
        np.concatenate([np.char.add("x", x_groups.astype(str)), np.char.add("y", y_groups.astype(str))]),
        return_inverse=True,
    )[1]
    n, m, rng = len(kernels.xx), len(kernels.yy), numpy_generator(seed)
    first = np.zeros((permutations, n + m))  # 1 for members of a division's first set
    for row in first:
        row[np.argsort(rng.permutation(groups.max() + 1)[groups], kind="stable")[:n]] = 1
    within = np.einsum("pn,pn->p", first @ whole, first)  # sums over pairs, with each member's pair with itself
    between = first @ whole.sum(1) - within
    own, all_own = first @ whole.diagonal(), np.trace(whole)
    others = whole.sum() - within - 2 * between
    found = (within - own) / (n * (n - 1)) + (others - (all_own - own)) / (m * (m - 1)) - 2 * between / (n * m)
    count = int((found >= mmd_squared(kernels) - 1e-12).sum())
    return (1 + count) / (permutations + 1)
