"""How a condition is measured on a volume: by a formula where the quantity is exact, else by a fit on real volumes.

A formula says how large the quantity is up to scale, and training volumes with their true values give the scale. All else,
such as an age or a finding, is fitted: ridge regression on the features of an evaluation. How good either is, held-out
volumes and their true values say: the *ceiling* of what can be read from a synthetic volume.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from medical_diffusion_components.data.conditions import Variable

__all__ = ["FORMULAS", "Instrument", "fitted_instrument", "glandular_fraction", "share_of_foreground", "weighted_ridge"]

FEWEST_TRAINING = 10  # volumes with a value, of which an instrument is made
PENALTIES = np.geomspace(1e-5, 1e1, 25)  # of the ridge, in units of the mean eigenvalue
BACKGROUND = -0.8  # intensities in [-1, 1]: above what a decoder leaves around a brain
FAT = 97  # percentile of the intensities in front of the chest: fat, the brightest tissue of T1-weighted breasts
AIR_BELOW, GLAND_BELOW = 0.15, 0.55  # shares of the fat's intensity


class Instrument(NamedTuple):
    """Reads one condition from what is known of volumes.

    ``read`` takes features (N, F), as :class:`~medical_diffusion_components.evaluation.Obedience` joins them, or the
    formula's values (N, 1), and returns (N,) values, of a category its place among the declared values.
    """

    how: str  # for the report
    training_volumes: int
    read: Callable[[np.ndarray], np.ndarray]


def share_of_foreground(volume: np.ndarray) -> float:
    """Share of the voxels (H, W, D) in [-1, 1] that are brighter than the background."""
    return float((volume > BACKGROUND).mean())


def glandular_fraction(volume: np.ndarray) -> float:
    """Share of the tissue in the front half (W points to the front) that is darker than fat: gland, and some skin.

    For T1-weighted breasts without suppression of fat, (H, W, D) in [-1, 1].
    """
    front = volume[:, volume.shape[1] // 2 :] + 1
    fat = np.percentile(front, FAT)
    tissue = front > AIR_BELOW * fat
    return float((tissue & (front < GLAND_BELOW * fat)).sum() / max(int(tissue.sum()), 1))


# of the embedded cohorts alone: a table of the user's may mean something else by the same name
FORMULAS: Mapping[str, Callable[[np.ndarray], float]] = {
    "brain_share": share_of_foreground,
    "glandular_fraction": glandular_fraction,
}


def fitted_instrument(variable: Variable, inputs: np.ndarray, truth: np.ndarray, how: str) -> Instrument:
    """Fit an instrument on real training volumes.

    Categories are fitted as one number each, all categories with the same weight however frequent they are, and the
    largest is read.

    Args:
        variable: what is measured.
        inputs: (N, F) features or a formula's values.
        truth: (N,) true values, of a category its place; NaN where missing.
        how: for the report.

    Raises:
        ValueError: fewer than 10 volumes with a value, no two values that differ, or a category of which there is none.
    """
    known = np.isfinite(truth)
    inputs, truth = inputs[known], truth[known]
    if len(truth) < FEWEST_TRAINING:
        raise ValueError(
            f"condition {variable.name}: expected at least {FEWEST_TRAINING} training volumes with a value, "
            f"got {len(truth)}"
        )
    if not variable.values:
        if np.ptp(truth) == 0:
            raise ValueError(f"condition {variable.name}: all training volumes have the value {truth[0]:g}")
        fit = weighted_ridge(inputs, truth[:, None], np.ones(len(truth)))
        return Instrument(how, len(truth), lambda some: fit(some)[:, 0])
    counts = np.bincount(truth.astype(int), minlength=len(variable.values))
    if not counts.all():
        lacking = variable.values[int(np.flatnonzero(counts == 0)[0])]
        raise ValueError(
            f"condition {variable.name}: no training volume is {lacking}, so it cannot be told from others"
        )
    of_classes = weighted_ridge(inputs, np.eye(len(counts))[truth.astype(int)], 1 / counts[truth.astype(int)])
    return Instrument(how, len(truth), lambda some: of_classes(some).argmax(1).astype(float))


def weighted_ridge(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Ridge regression with an intercept, its penalty that of the smallest leave-one-out error.

    Hoerl and Kennard, "Ridge regression", Technometrics 12, 1970; the leave-one-out errors of a linear fit follow from its
    hat matrix (Allen, Technometrics 16, 1974).

    Args:
        x: (N, F).
        y: (N, K).
        weights: (N,), above 0.

    Returns:
        (M, F) -> (M, K).
    """
    share = weights / weights.sum()
    centre, level = share @ x, share @ y
    root = np.sqrt(share)[:, None]
    xs, ys = root * (x - centre), root * (y - level)
    values, vectors = np.linalg.eigh(xs @ xs.T)
    values = values.clip(min=0)
    turned = vectors.T @ ys

    def dual(penalty: float) -> np.ndarray:
        return vectors @ (turned / (values + penalty)[:, None])  # (N, K)

    def left_out(penalty: float) -> float:
        fitted = vectors @ (turned * (values / (values + penalty))[:, None])
        leverage = np.square(vectors) @ (values / (values + penalty)) + share  # the last for the intercept
        return float(np.square((ys - fitted) / (1 - leverage).clip(min=1e-9)[:, None]).sum())

    penalty = min(PENALTIES * max(float(values.mean()), 1e-12), key=left_out)
    slopes = xs.T @ dual(penalty)  # (F, K)
    return lambda some: (some - centre) @ slopes + level
