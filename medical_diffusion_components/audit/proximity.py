"""Whether a model's volumes, taken together, lie nearer to the training set than they should.

* Holdout share: Platzer and Reutterer, "Holdout-Based Empirical Assessment of Mixed-Type Synthetic Data", Frontiers in Big
  Data, 2021.
* C_T: Meehan et al., "A Non-Parametric Test to Detect Data-Copying in Generative Models", AISTATS 2020, with one cell.
* The published rule for this very model: Dar et al., Nature Biomedical Engineering, 2025. Its threshold is the 95th
  percentile of the maximum over n_val validation volumes, applied to a maximum over n_train: with no copies at all it is
  exceeded with probability 1 - 0.95^(n_train / n_val) if volumes are independent, which is far above 5 % where validation
  is the smaller set. So it is printed beside what it says of held-out volumes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import stats

from medical_diffusion_components.chance import numpy_generator

__all__ = ["HoldoutShare", "PublishedRule", "data_copying_z", "holdout_share", "published_rule"]


class HoldoutShare(NamedTuple):
    """Share of synthetic volumes that are nearer to a training than to a held-out volume; 0.5 without copies."""

    share: float  # mean over redraws
    scatter: float  # standard deviation over redraws of the two sets, of one set of synthetic volumes
    size: int  # volumes in each set
    redraws: int


class PublishedRule(NamedTuple):
    """The rule of Dar et al., and what it says where there is nothing to find."""

    threshold: float
    memorised: float  # share of training volumes whose nearest synthetic volume is above it
    copies: float  # share of synthetic volumes whose nearest training volume is above it
    held_out: float  # share of *held-out* volumes whose nearest training volume is above it: its false alarms
    expected: float  # 1 - 0.95^(n_train / n_val), were the volumes independent


def holdout_share(to_training: np.ndarray, to_held_out: np.ndarray, redraws: int = 100, seed: int = 0) -> HoldoutShare:
    """Compare nearest neighbours in training and held-out sets of equal size, drawn anew each time; ties count half.

    Args:
        to_training: similarities (n, N) of synthetic with training volumes.
        to_held_out: similarities (n, M) with held-out volumes.
        redraws: how often the sets are drawn.
        seed: of the draws.
    """
    rng = numpy_generator(seed)
    size = min(to_training.shape[1], to_held_out.shape[1])
    shares = []
    for _ in range(redraws):
        one, other = (
            side[:, rng.choice(side.shape[1], size, replace=False)].max(axis=1) for side in (to_training, to_held_out)
        )
        shares.append(float(((one > other) + 0.5 * (one == other)).mean()))
    return HoldoutShare(float(np.mean(shares)), float(np.std(shares)), size, redraws)


def data_copying_z(synthetic: np.ndarray, held_out: np.ndarray) -> float:
    """Z of the Mann-Whitney test between two sets of distances to the nearest training volume; far below 0 is copying.

    Args:
        synthetic, held_out: similarities (n,) and (m,) with the nearest training volume; distances fall as they rise.
    """
    below = stats.mannwhitneyu(-np.asarray(synthetic), -np.asarray(held_out)).statistic
    n, m = len(synthetic), len(held_out)
    return float((below - n * m / 2) / np.sqrt(n * m * (n + m + 1) / 12))


def published_rule(
    synthetic: np.ndarray, training: np.ndarray, held_out: np.ndarray, seed: int = 0, level: float = 0.95
) -> PublishedRule:
    """The rule of Dar et al. with half of the held-out volumes as its validation set and the other half to try it on.

    Args:
        synthetic: similarities (n, N) of synthetic with training volumes.
        training: similarities (M, N) of held-out with training volumes, as the validation set is compared (not through
            the first stage).
        held_out: the same volumes, as synthetic ones are seen (through the first stage), (M, N).
        seed: of the halving.
        level: quantile.
    """
    order = numpy_generator(seed).permutation(len(training))
    validation, others = order[: len(order) // 2], order[len(order) // 2 :]
    threshold = float(np.quantile(training[validation].max(axis=0), level))
    return PublishedRule(
        threshold=threshold,
        memorised=float((synthetic.max(axis=0) > threshold).mean()),
        copies=float((synthetic.max(axis=1) > threshold).mean()),
        held_out=float((held_out[others].max(axis=1) > threshold).mean()),
        expected=float(1 - level ** (training.shape[1] / len(validation))),
    )
