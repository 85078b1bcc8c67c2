"""Volumes that are turned, mirrored or inverted against others, by their correlation with the mean of these."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations, product
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Turned", "turned_against"]

AXES = "HWD"
CLEARLY = 0.05  # by which one correlation has to exceed another


class Turned(NamedTuple):
    """How many volumes are turned, how most of them are, and their median correlation with it undone and as they are."""

    number: int
    way: str
    undone: float
    as_they_are: float

    def __str__(self) -> str:
        return (
            f"resemble the training volumes far better {self.way} (correlation with their mean {self.undone:.2f}, "
            f"{self.as_they_are:.2f} as they are)"
        )


def turned_against(training: Tensor, volumes: Tensor, flip_axis: int | None = None) -> Turned | None:
    """Find volumes that are turned, mirrored or inverted against the training volumes.

    Each is correlated with the mean training volume: as it is, and with the mean mirrored along any axes, with axes of the
    same length exchanged, and with inverted intensities. One of these changes is found if with it the volume resembles
    the mean as a training volume does, and gains more than any training volume would gain by such a change.

    Args:
        training, volumes: reduced volumes, (N, C, h, w, d) and (M, C, h, w, d).
        flip_axis: spatial axis along which volumes may lie either way, such as the one that a training mirrors.

    Returns:
        None if there are none.
    """
    ways, turned = _turned(training.mean(0))
    as_drawn = [0] if flip_axis is None else [0, ways.index(f"mirrored along {AXES[flip_axis]}")]
    as_they_are, _, gain = _correlations(training, turned, as_drawn)
    own, best, gained = _correlations(volumes, turned, as_drawn)
    found = (own + gained >= as_they_are.min() - CLEARLY) & (gained > gain.max() + CLEARLY)
    if not found.any():
        return None
    way = ways[int(best[found].mode().values)]
    undone, now = (float(some[found].median()) for some in (own + gained, own))
    return Turned(int(found.sum()), way, undone, now)


def _turned(mean: Tensor) -> tuple[list[str], Tensor]:
    """How a mean volume (C, h, w, d) can be turned, the first way as it is, and what it is then, (K, C, h, w, d)."""
    ways, volumes = [], []
    orders = [order for order in permutations(range(3)) if [mean.shape[1 + k] for k in order] == list(mean.shape[1:])]
    for inverted, order, flips in product((False, True), orders, product((False, True), repeat=3)):
        flipped = [axis for axis, flip in enumerate(flips) if flip]
        changes = [f"with the axes {''.join(AXES[k] for k in order)}"] * (order != (0, 1, 2))
        changes += [f"mirrored along {' and '.join(AXES[k] for k in flipped)}"] * bool(flipped)
        ways.append(", ".join([*changes, *["with inverted intensities"] * inverted]))
        volume = mean.permute(0, *(1 + k for k in order)).flip([1 + k for k in flipped])
        volumes.append(-volume if inverted else volume)
    return ways, torch.stack(volumes)


def _correlations(volumes: Tensor, turned: Tensor, as_drawn: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Of each volume with the best of ``as_drawn``, the number of the best of all, and how much better it is, (N,) each."""

    def unit(some: Tensor) -> Tensor:
        flat = some.flatten(1).double()
        return functional.normalize(flat - flat.mean(1, keepdim=True))

    found = unit(volumes) @ unit(turned).T
    own, best = found[:, as_drawn].amax(1), found.max(1)
    return own, best.indices, best.values - own
