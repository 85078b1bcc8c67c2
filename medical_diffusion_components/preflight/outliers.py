"""Scans that are unlike the others, by the median and the median absolute deviation (MAD).

An outlier lies more than 3.5 robust standard deviations from the median: Iglewicz and Hoaglin, "How to detect and
handle outliers" (1993). Where most scans are the same the MAD is 0, so each quantity has a smallest deviation.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

__all__ = ["Quantity", "name_outliers", "name_rare"]

_LIMIT = 3.5
_MAD_TO_SD = 1.4826  # of a normal distribution
_FEWEST = 5  # scans, below which nothing is an outlier
_RARE = 0.1  # share of the scans


class Quantity(NamedTuple):
    """What is compared: its name, its unit, and how small a robust standard deviation is believed.

    With ``ratio`` values are compared by their ratios, and ``least`` is a share; else it is in the unit.
    ``low_only``: a value above the median is no outlier.
    """

    name: str
    unit: str
    least: float
    ratio: bool = True
    low_only: bool = False


def name_outliers(quantity: Quantity, values: Mapping[str, float]) -> dict[str, str]:
    """Case id -> why its value is an outlier.

    Args:
        quantity: what the values are.
        values: case id -> value; those of ratios must be above 0 to be compared.
    """
    kept = {case: value for case, value in values.items() if np.isfinite(value) and (value > 0 or not quantity.ratio)}
    if len(kept) < _FEWEST:
        return {}
    numbers = np.array(list(kept.values()), dtype=float)
    compared = np.log(numbers) if quantity.ratio else numbers
    centre = np.median(compared)
    deviation = max(_MAD_TO_SD * float(np.median(np.abs(compared - centre))), quantity.least)
    median = float(np.median(numbers))
    said = {}
    for case, value, place in zip(kept, numbers, compared):
        distance = (place - centre) / deviation
        if distance < -_LIMIT or (distance > _LIMIT and not quantity.low_only):
            unit = f" {quantity.unit}" if quantity.unit else ""
            said[case] = f"{quantity.name} {value:.4g}{unit} (median {median:.4g})"
    return said


def name_rare(name: str, values: Mapping[str, str]) -> dict[str, str]:
    """Case id -> why its value is rare: at most a tenth of the scans have it, and more than half have another."""
    counts = Counter(values.values())
    if len(values) < _FEWEST or len(counts) < 2:
        return {}
    usual, number = counts.most_common(1)[0]
    if number <= len(values) / 2:
        return {}
    return {
        case: f"{name} {value}, in {number} of {len(values)} it is {usual}"
        for case, value in values.items()
        if value != usual and counts[value] <= max(1, _RARE * len(values))
    }


def merged(*findings: Mapping[str, str]) -> dict[str, list[str]]:
    """Case id -> all that was found of it, in the order of case ids."""
    found: dict[str, list[str]] = defaultdict(list)
    for finding in findings:
        for case, text in finding.items():
            found[case].append(text)
    return dict(sorted(found.items()))
