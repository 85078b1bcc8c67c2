"""Epochs of a given number of samples, whatever the number of cases."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Dataset

from medical_diffusion_components.data.loading import ResumableSampler, _EpochIndex, derive_seed

__all__ = ["RepeatingSampler"]


class RepeatingSampler(ResumableSampler):
    """Draws an endless stream of cases, ``num_samples`` of them per epoch and rank.

    The stream is a shuffled pass over all cases after the other, so trainings with one label and with a hundred make the
    same number of steps and see each of their cases equally often. Epochs only cut it. A case is augmented otherwise
    in every pass: with a :class:`~medical_diffusion_components.data.loading.SeededDataset` its augmentation follows from
    (seed, pass, case).

    Args:
        dataset: what to draw from.
        num_samples: per epoch and rank; None: one pass, shared among the ranks.
        seed: with the pass it fixes the order.

    Raises:
        ValueError: an empty dataset, or fewer than one sample.
    """

    def __init__(self, dataset: Dataset, num_samples: int | None = None, seed: int = 0) -> None:
        if len(dataset) == 0 or (num_samples is not None and num_samples < 1):
            raise ValueError(f"expected cases and at least one sample, got {len(dataset)} cases, {num_samples} samples")
        super().__init__(dataset, seed=seed)
        if num_samples is not None:
            self.num_samples = int(num_samples)  # what DistributedSampler calls a rank's share of an epoch

    def __iter__(self) -> Iterator[int]:
        start = self.epoch * self.num_samples
        places = [number * self.num_replicas + self.rank for number in range(start, start + self.num_samples)]
        skipped, self._skip = self._skip, 0
        return iter([self._draw(place) for place in places[skipped:]])

    def _draw(self, place: int) -> _EpochIndex:
        length = len(self.dataset)
        number, position = divmod(place, length)
        generator = torch.Generator().manual_seed(derive_seed(self.seed, number))
        return _EpochIndex(int(torch.randperm(length, generator=generator)[position]), number)
