"""Standard errors of statistics that are no plain means.

Efron and Stein, "The jackknife estimate of variance", Annals of Statistics 9, 1981; for several independent samples, the
variances that each brings are added (Arvesen, Annals of Mathematical Statistics 40, 1969).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

__all__ = ["Estimate", "group_jackknife", "jackknife"]


class Estimate(NamedTuple):
    """A number and its standard error."""

    value: float
    error: float


def jackknife(statistic: Callable[..., float], *sizes: int) -> Estimate:
    """Statistic of the whole samples, and its standard error by leaving out one member at a time.

    For a difference of two methods that were given the same seeds or cases, let ``statistic`` be the difference: what the
    two have in common then cancels in the error as well.

    Args:
        statistic: is called with one array of indices per sample, those that are kept.
        sizes: number of members of each sample.

    Raises:
        ValueError: a sample of fewer than two.
    """
    if not sizes or min(sizes) < 2:
        raise ValueError(f"a jackknife needs samples of two or more members, got sizes {list(sizes)}")
    return group_jackknife(statistic, *(np.arange(size) for size in sizes), most=max(sizes))


def group_jackknife(statistic: Callable[..., float], *groups: np.ndarray, most: int = 20) -> Estimate:
    """As :func:`jackknife`, leaving out a group of members at a time, such as all volumes of a patient.

    Args:
        statistic: is called with one array of indices per sample, those that are kept.
        groups: (size,) for each sample, which group each member belongs to.
        most: groups of a sample that are left out one by one; where there are more, they are first joined to this many.

    Raises:
        ValueError: a sample of fewer than two groups.
    """
    everyone = [np.arange(len(members)) for members in groups]
    variance = 0.0
    for place, members in enumerate(groups):
        numbers = np.unique(members, return_inverse=True)[1]
        count = int(numbers.max()) + 1 if len(numbers) else 0
        if count < 2:
            raise ValueError(f"a jackknife needs samples of two or more groups, got {count}")
        blocks = min(count, most)
        numbers = numbers % blocks
        kept = [np.flatnonzero(numbers != left_out) for left_out in range(blocks)]
        values = np.array([statistic(*everyone[:place], some, *everyone[place + 1 :]) for some in kept])
        variance += (blocks - 1) / blocks * float(np.square(values - values.mean()).sum())
    return Estimate(float(statistic(*everyone)), variance**0.5)
