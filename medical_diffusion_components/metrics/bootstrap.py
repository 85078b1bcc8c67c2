"""Confidence intervals of means, by resampling.

Efron, "Bootstrap methods: another look at the jackknife", Annals of Statistics 7, 1979: percentiles of the resampled means.
Rows and columns of a table are resampled together (the "pigeonhole bootstrap", Owen, Annals of Applied Statistics 1, 2007).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from medical_diffusion_components.chance import numpy_generator

__all__ = ["Interval", "bootstrap_mean"]


class Interval(NamedTuple):
    """A mean and the limits of its confidence interval."""

    mean: float
    low: float
    high: float


def bootstrap_mean(values: np.ndarray, level: float = 0.95, resamples: int = 4000, seed: int = 0) -> Interval:
    """Mean of ``values`` (runs, patients) and its interval, with rows and columns drawn again with replacement.

    Patients of one run share its training, and a patient is as difficult in every run: drawing single values would take
    them for independent and give intervals that are too narrow. A single row is the usual bootstrap over patients.

    Args:
        values: one mean per run and patient.
        level: of the interval, in (0, 1).
        resamples: how many.
        seed: of the resampling.

    Raises:
        ValueError: no values, or not two dimensions.
    """
    if values.ndim != 2 or not values.size:
        raise ValueError(f"expected values (runs, patients), got shape {values.shape}")
    rng = numpy_generator(seed)
    rows = rng.integers(0, values.shape[0], (resamples, values.shape[0]))
    columns = rng.integers(0, values.shape[1], (resamples, values.shape[1]))
    means = values[rows[:, :, None], columns[:, None, :]].mean((1, 2))
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(values.mean()), float(low), float(high))
