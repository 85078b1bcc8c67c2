"""The nearest training volume of each volume, in the encoder's space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = ["Nearest", "TrainingBank", "merge_groups", "similar_pairs"]

PIECE = 1024  # rows of similarities in memory at once


class Nearest(NamedTuple):
    """Of n volumes, their nearest training volumes."""

    similarity: np.ndarray  # (n,) cosine with the nearest, in [-1, 1]
    source: np.ndarray  # (n,) which training volume that is
    ratio: np.ndarray  # (n,) distance to the nearest patient over that to the second nearest, in [0, 1]


class TrainingBank(NamedTuple):
    """Training volumes as points, each as it is, through the generator's first stage, and both mirrored.

    Args:
        points: (N, views, F) of length 1; the first view is the volume as it is.
        groups: (N,) integers, the same for volumes of one patient (and of duplicates).
    """

    points: Tensor
    groups: Tensor

    def similarities(self, queries: Tensor) -> Tensor:
        """Cosines with each training volume in its better view, (n, F) -> (n, N)."""
        found = [
            (part @ self.points.flatten(0, 1).T).unflatten(1, self.points.shape[:2]) for part in queries.split(PIECE)
        ]
        return torch.cat(found).amax(dim=2)

    def nearest(self, queries: Tensor) -> Nearest:
        """Nearest training volume, and how much nearer its patient is than any other (Yoon et al., 2023).

        Args:
            queries: (n, F) of length 1.

        Raises:
            ValueError: training volumes of one patient only.
        """
        if len(self.groups.unique()) < 2:
            raise ValueError("expected training volumes of two or more patients, got those of one")
        similarities = self.similarities(queries)  # (n, N)
        best, source = similarities.max(dim=1)
        same = self.groups[source][:, None] == self.groups[None]  # (n, N)
        second = similarities.masked_fill(same, -1.0).amax(dim=1)
        first_distance, second_distance = ((2 - 2 * s).clamp(min=0).sqrt() for s in (best, second))
        ratio = first_distance / second_distance.clamp(min=1e-6)
        return Nearest(best.double().numpy(), source.numpy(), ratio.double().numpy())


def similar_pairs(bank: TrainingBank, threshold: float) -> list[tuple[int, int, float]]:
    """Pairs of training volumes of different patients with a similarity above ``threshold``, most similar first.

    Returns:
        (one, other, similarity) with one < other.
    """
    similarities = bank.similarities(bank.points[:, 0])
    other_patient = (bank.groups[:, None] != bank.groups[None]).triu(1)
    found = torch.nonzero((similarities > threshold) & other_patient).tolist()
    pairs = [(one, other, float(similarities[one, other])) for one, other in found]
    return sorted(pairs, key=lambda pair: -pair[2])


def merge_groups(groups: Tensor, pairs: Sequence[tuple[int, int, float]]) -> Tensor:
    """The groups with those of each pair made one, so that a duplicate is not taken for a second patient."""
    merged = groups.clone()
    for one, other, _ in pairs:
        merged[merged == merged[other]] = merged[one].item()
    return merged
