"""A distance as older papers printed it, for comparison with their figures alone.

MMD as the reference code of Kwon et al. (MICCAI 2019) computes it: a linear kernel on raw voxels, with the diagonal, in
batches of four. It sees nothing but the difference of two means, and of so few volumes that two halves of one set
read far from 0, which stands beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

__all__ = ["older_figures", "published_mmd"]

BATCH = 4
PASSES = 10  # batches, at most
WHAT = "MMD as published (linear kernel on voxels, biased, batches of 4), mean and SD over batches"


def published_mmd(x: Sequence[Tensor], y: Sequence[Tensor]) -> dict[str, float]:
    """(sum of k(x, x') + sum of k(y, y') - 2 sum of k(x, y)) / B^2 with k the dot product: the means' squared distance.

    Args:
        x, y: volumes (C, H, W, D) in [-1, 1], four or more of each.

    Returns:
        value, the mean over batches; sd, over them (0 of a single one); batches.

    Raises:
        ValueError: fewer than four volumes.
    """
    passes = min(len(x) // BATCH, len(y) // BATCH, PASSES)
    if passes == 0:
        raise ValueError(f"expected {BATCH} or more volumes of each, got {len(x)} and {len(y)}")
    found = [float((_mean(x, number) - _mean(y, number)).square().sum()) for number in range(passes)]
    return {"value": float(np.mean(found)), "sd": float(np.std(found)), "batches": passes}


def _mean(volumes: Sequence[Tensor], number: int) -> Tensor:
    total = volumes[number * BATCH].double()
    for place in range(1, BATCH):
        total = total + volumes[number * BATCH + place].double()
    return total / BATCH


def older_figures(synthetic: Sequence[Tensor], held_out: Sequence[Tensor]) -> Mapping[str, Any]:
    """What goes into ``evaluation.json``: of synthetic against held-out volumes, and of every other held-out volume.

    Args:
        synthetic, held_out: volumes (C, H, W, D) in [-1, 1].

    Returns:
        empty where there are too few.
    """
    even, odd = range(0, len(held_out), 2), range(1, len(held_out), 2)
    if len(synthetic) < BATCH or len(odd) < BATCH:
        return {}
    halves = [_Some(held_out, some) for some in (even, odd)]
    return {"what": WHAT, "synthetic": published_mmd(synthetic, held_out), "held_out_halves": published_mmd(*halves)}


class _Some(Sequence[Tensor]):
    """Some of the volumes, read when they are asked for."""

    def __init__(self, volumes: Sequence[Tensor], places: Sequence[int]) -> None:
        self.volumes, self.places = volumes, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number):
        return self.volumes[self.places[number]]
