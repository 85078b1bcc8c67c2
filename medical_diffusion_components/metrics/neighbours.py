"""Fidelity and coverage from nearest neighbours.

Kynkaanniemi et al., "Improved Precision and Recall Metric for Assessing Generative Models", NeurIPS 2019; Naeem et al.,
"Reliable Fidelity and Diversity Metrics for Generative Models", ICML 2020 (density, coverage); Salvy et al., "Enhanced
Generative Model Evaluation with Clipped Density and Coverage", arXiv 2507.01761, for the clipped pair. A volume is near a
real one if it is no farther from it than the real one's k-th neighbour among the real; ties count as near.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy.stats import betabinom

from medical_diffusion_components.metrics.mmd import squared_distances

__all__ = ["NeighbourMeasures", "expected_coverage", "neighbour_measures"]


class NeighbourMeasures(NamedTuple):
    """All are better when higher; each is near 1 for two samples of one distribution."""

    precision: float  # share of synthetic volumes near some real one
    recall: float  # share of real volumes near some synthetic one, by the synthetic ones' own radii
    density: float  # mean number of real neighbourhoods that a synthetic volume is in, over k
    coverage: float  # share of real volumes with a synthetic one in their neighbourhood
    clipped_density: float  # the same where no outlier and no crowded place can make up for a bad volume
    clipped_coverage: float  # 0.8 reads: as good as when 80 % of the volumes are good


def neighbour_measures(synthetic: np.ndarray, real: np.ndarray, k: int = 5) -> NeighbourMeasures:
    """The six measures of a set of synthetic volumes.

    Args:
        synthetic: features (n, F).
        real: features (m, F), m > k + 1.
        k: neighbours that make a neighbourhood.

    Raises:
        ValueError: features of different lengths, or no more than k + 1 members in either set.
    """
    synthetic, real = np.asarray(synthetic, dtype=np.float64), np.asarray(real, dtype=np.float64)
    if synthetic.ndim != 2 or real.ndim != 2 or synthetic.shape[1] != real.shape[1]:
        raise ValueError(f"expected features (n, F) and (m, F), got shapes {synthetic.shape} and {real.shape}")
    if min(len(synthetic), len(real)) <= k + 1:
        raise ValueError(f"{k} neighbours need sets of more than {k + 1}, got {len(synthetic)} and {len(real)}")
    return measures_of_distances(distances(synthetic, synthetic), distances(real, real), distances(synthetic, real), k)


def distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Euclidean distances, (n, F), (m, F) -> (n, m)."""
    found = np.sqrt(squared_distances(x, y))
    if x is y:
        np.fill_diagonal(found, 0.0)
    return found


def measures_of_distances(ss: np.ndarray, rr: np.ndarray, sr: np.ndarray, k: int = 5) -> NeighbourMeasures:
    """As :func:`neighbour_measures`, from distances that were computed once.

    Args:
        ss: synthetic to synthetic, (n, n).
        rr: real to real, (m, m).
        sr: synthetic to real, (n, m).
        k: neighbours that make a neighbourhood.
    """
    real_radii, synthetic_radii = _radii(rr, k), _radii(ss, k)
    near = sr <= real_radii[None]  # synthetic i is near real j
    clipped = np.minimum(real_radii, np.median(real_radii))
    others = ~np.eye(len(rr), dtype=bool)
    ideal = np.minimum(((rr <= clipped[None]) & others).sum(1) / k, 1).mean()
    crowd = np.minimum((sr <= clipped[None]).sum(1) / k, 1).mean()
    raw = np.minimum(near.sum(0), k).mean() / k
    return NeighbourMeasures(
        precision=float(near.any(1).mean()),
        recall=float((sr <= synthetic_radii[:, None]).any(0).mean()),
        density=float(near.sum(1).mean() / k),
        coverage=float(near.any(0).mean()),
        clipped_density=float(crowd / ideal) if ideal > 0 else float("nan"),
        clipped_coverage=_as_share_of_good(raw, len(ss), len(rr), k),
    )


def _radii(within: np.ndarray, k: int) -> np.ndarray:
    """Distance of each member to its k-th neighbour, (n, n) -> (n,); itself is at place 0."""
    return np.partition(within, k, axis=1)[:, k]


def expected_coverage(n: int, m: int, k: int = 5) -> float:
    """Expected coverage of m real volumes by n others of the same distribution.

    1 - prod_{i < k} (m - 1 - i) / (n + m - 1 - i): the k nearest of a real volume are all real.
    """
    return 1 - float(np.prod([(m - 1 - i) / (n + m - 1 - i) for i in range(k)]))


@lru_cache(maxsize=64)
def _expected_clipped(n: int, m: int, k: int) -> np.ndarray:
    """Expectation of min(synthetic volumes near a real one, k) / k for 0, 1, ... n good ones, (n + 1,).

    A real volume's k-th neighbour among m - 1 others encloses a share of the distribution that is Beta(k, m - k)
    distributed, so the number of good ones inside is beta-binomial.
    """
    counts = np.arange(k)
    short = [float(((k - counts) * betabinom.pmf(counts, good, k, m - k)).sum()) for good in range(1, n + 1)]
    return np.array([0.0, *(1 - np.array(short) / k)])


def _as_share_of_good(raw: float, n: int, m: int, k: int) -> float:
    expected = _expected_clipped(n, m, k)
    return float(np.interp(raw, expected, np.arange(n + 1) / n))
