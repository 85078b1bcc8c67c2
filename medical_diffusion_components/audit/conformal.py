"""The test that decides about a volume, and what follows for a model, with intervals.

Conformal p-values: Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World", 2005; used as here, against a
held-out calibration set, by Bates et al., "Testing for outliers with conformal p-values", Annals of Statistics 51, 2023.
If a volume was made without regard to the training volumes, its similarity to them ranks among those of held-out patients
as any of theirs, so p <= alpha happens to at most a share of alpha of such volumes, whatever the similarity is.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy import stats

__all__ = [
    "FlaggedShare",
    "clopper_pearson",
    "conformal_p",
    "flagged_share",
    "smallest_calibration",
]


class FlaggedShare(NamedTuple):
    """How many of a model's volumes have p <= alpha, and what that says."""

    flagged: int
    volumes: int
    share: float
    interval: tuple[float, float]  # 95 %, Clopper-Pearson
    innocent_range: tuple[float, float]  # 5 % to 95 %: rates of false alarms with one calibration set of this size
    innocent_count: int  # so many or fewer are flagged in 95 % of the audits of so many volumes with no copies
    copies: float  # estimate of the share of copies, (share - alpha) / (1 - alpha), at least 0
    copies_interval: tuple[float, float]
    p_binomial: float  # that so many or more are flagged if each is with probability alpha
    p_value: float  # the same, with the scatter that the one calibration set brings


def smallest_calibration(alpha: float) -> int:
    """Fewest held-out patients with which p <= alpha can happen at all: 19 for 0.05."""
    return math.ceil(1 / alpha - 1e-9) - 1


def conformal_p(scores: np.ndarray, calibration: np.ndarray) -> np.ndarray:
    """(1 + number of held-out patients at least as similar) / (number of held-out patients + 1).

    Args:
        scores: (n,) similarities of the volumes to test.
        calibration: (m,) similarities of held-out volumes, one per patient.

    Returns:
        (n,) in [1 / (m + 1), 1].
    """
    ordered = np.sort(np.asarray(calibration, dtype=np.float64))
    lower = np.searchsorted(ordered, np.asarray(scores, dtype=np.float64), side="left")
    return (1 + len(ordered) - lower) / (len(ordered) + 1)


def clopper_pearson(count: int, total: int, level: float = 0.95) -> tuple[float, float]:
    """Exact interval for a share (Clopper and Pearson, Biometrika 26, 1934)."""
    interval = stats.binomtest(int(count), int(total)).proportion_ci(level, method="exact")
    return float(interval.low), float(interval.high)


def flagged_share(p_values: np.ndarray, alpha: float, patients: int) -> FlaggedShare:
    """What the p-values of a model's volumes say about the model.

    All volumes are compared with the same held-out patients. The rate of false alarms is therefore not alpha but, over
    calibration sets, a beta-distributed one around it (Bates et al., section 2), and the number of innocent volumes with
    p <= alpha is beta-binomial. ``p_value`` accounts for that; ``p_binomial``, the textbook's, does not.

    Args:
        p_values: (n,) as ``conformal_p`` gives them.
        alpha: level of the test.
        patients: number of held-out patients behind them.

    Raises:
        ValueError: no volumes, or too few patients for p <= alpha to happen.
    """
    total = len(p_values)
    rank = math.floor(alpha * (patients + 1) + 1e-9)  # so many held-out patients, the most similar, have p <= alpha
    if total < 1 or rank < 1:
        raise ValueError(
            f"expected volumes and at least {smallest_calibration(alpha)} held-out patients, got {total} and {patients}"
        )
    count = int((np.asarray(p_values) <= alpha + 1e-12).sum())
    low, high = clopper_pearson(count, total)
    innocent = stats.beta(rank, patients + 1 - rank)
    copies, copies_low, copies_high = (max(0.0, (share - alpha) / (1 - alpha)) for share in (count / total, low, high))
    return FlaggedShare(
        flagged=count,
        volumes=total,
        share=count / total,
        interval=(low, high),
        innocent_range=(float(innocent.ppf(0.05)), float(innocent.ppf(0.95))),
        innocent_count=int(stats.betabinom.ppf(0.95, total, rank, patients + 1 - rank)),
        copies=copies,
        copies_interval=(copies_low, copies_high),
        p_binomial=float(stats.binom.sf(count - 1, total, alpha)),
        p_value=float(stats.betabinom.sf(count - 1, total, rank, patients + 1 - rank)),
    )
