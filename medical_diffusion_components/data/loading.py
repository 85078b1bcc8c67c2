"""Data order and augmentation that follow from a seed, the epoch and the case, and so survive an interruption."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import torch
from monai.data import CacheDataset
from monai.transforms import Compose
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler

from medical_diffusion_components.chance import derive_seed, torch_generator
from medical_diffusion_components.distributed import process_rank, world_size

__all__ = ["RepeatingSampler", "ResumableSampler", "SeededDataset"]


def _num_cases(dataset: Dataset) -> int:
    """torch declares datasets without a length, since streams have none; those with an order do."""
    return len(cast(Sized, dataset))


class _EpochIndex(int):
    """Index of a case that also carries the epoch it is asked for in; survives the trip to a worker process."""

    epoch: int = 0

    def __new__(cls, index: int, epoch: int = 0) -> _EpochIndex:
        self = super().__new__(cls, index)
        self.epoch = epoch
        return self

    def __reduce__(self) -> tuple:
        return _EpochIndex, (int(self), self.epoch)


class ResumableSampler(DistributedSampler):
    """Shuffles by (seed, epoch), shares the cases among ranks, and can start in the middle of an epoch.

    MONAI engines announce the epoch to it as they do to every ``DistributedSampler``. Used with one process, too. Ranks
    that train need equal shares, so with shuffling up to one case per rank comes twice in an epoch; ranks that validate
    do not, and without shuffling every case comes once (twice only for a rank that would have none).

    Args:
        dataset: what to draw from.
        seed: with the epoch it fixes the order.
        shuffle: whether to shuffle at all.
        weights: one per case: an epoch has as many draws as there are cases, each a case in proportion to its weight, so
            that some come several times and others not; None: every case once.

    Raises:
        ValueError: weights that are not one per case, negative or all zero, or without shuffling.
    """

    def __init__(
        self, dataset: Dataset, seed: int = 0, shuffle: bool = True, weights: Sequence[float] | None = None
    ) -> None:
        super().__init__(dataset, num_replicas=world_size(), rank=process_rank(), shuffle=shuffle, seed=seed)
        if weights is not None and (
            not shuffle or len(weights) != _num_cases(dataset) or not min(weights) >= 0 or not max(weights) > 0
        ):
            raise ValueError(
                f"expected one weight for each of {_num_cases(dataset)} cases, none negative and not all 0, and shuffling; "
                f"got {len(weights)}, shuffle {shuffle}"
            )
        self.weights = None if weights is None else torch.tensor(weights, dtype=torch.float64)
        if not shuffle:
            self.num_samples = len(self._share())  # what DistributedSampler calls a rank's share of an epoch
        self._skip = 0

    def skip_once(self, num_samples: int) -> None:
        """Leave out the first ``num_samples`` of this rank the next time that the sampler is iterated."""
        self._skip = num_samples

    def __iter__(self) -> Iterator[int]:
        if self.weights is not None:
            indices = self._drawn(self.weights)
        else:
            indices = list(super().__iter__()) if self.shuffle else self._share()
        indices, self._skip = indices[self._skip :], 0
        return iter([_EpochIndex(index, self.epoch) for index in indices])

    def _drawn(self, weights: Tensor) -> list[int]:
        generator = torch_generator(derive_seed(self.seed, self.epoch))
        drawn = torch.multinomial(weights, self.total_size, replacement=True, generator=generator)
        return drawn[self.rank :: self.num_replicas].tolist()

    def _share(self) -> list[int]:
        everything = list(range(_num_cases(self.dataset)))
        return everything[self.rank :: self.num_replicas] or everything[:1]


class SeededDataset(CacheDataset):
    """MONAI's cache dataset whose random transforms are seeded by (seed, epoch, case).

    The augmentation of a case does not depend on how many workers load it, on which batch it is in, or on whether
    training was interrupted before. Needs the :class:`ResumableSampler` to know the epoch; indexed otherwise, the epoch
    is 0.

    Args:
        data: one dictionary per case.
        transform: MONAI's ``Compose``; what stands before its first random transform is computed once and cached.
        seed: with epoch and index it fixes the augmentation.
        cache_rate: share of the cases to keep in memory, in [0, 1].
        num_workers: threads that fill the cache.
        same_every_epoch: seed by (seed, case) alone, as a validation does whose random transforms must not change.
    """

    def __init__(
        self,
        data: Sequence,
        transform: Compose,
        seed: int = 0,
        cache_rate: float = 1.0,
        num_workers: int | None = 1,
        same_every_epoch: bool = False,
    ) -> None:
        self.seed = seed
        self.same_every_epoch = same_every_epoch
        super().__init__(data, transform, cache_rate=cache_rate, num_workers=num_workers, progress=False)

    def _fill_cache(self, indices: Sequence[int] | None = None) -> list:
        """Load the cases ``indices``; None: those that fit the cache.

        A case that cannot be read ends this only when every thread has finished its own. MONAI's pool would leave its
        threads at work, and the interpreter aborts if it ends meanwhile.
        """
        numbers = list(range(self.cache_num) if indices is None else indices)
        if self.num_workers == 1:
            return [self._load_cache_item(number) for number in numbers]
        pool = ThreadPoolExecutor(self.num_workers)
        try:
            return list(pool.map(self._load_cache_item, numbers))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _transform(self, index: int) -> Any:
        epoch = 0 if self.same_every_epoch else getattr(index, "epoch", 0)
        self.transform.set_random_state(seed=derive_seed(self.seed, epoch, index))
        return super()._transform(index)


class RepeatingSampler(ResumableSampler):
    """Draws an endless stream of cases, ``num_samples`` of them per epoch and rank.

    The stream is one shuffled pass over all cases after another, so trainings with one label and with a hundred make the
    same number of steps and see each of their cases equally often. Epochs only cut it. A case is augmented differently
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
        num_cases = _num_cases(dataset)
        if num_cases == 0 or (num_samples is not None and num_samples < 1):
            raise ValueError(f"expected cases and at least one sample, got {num_cases} cases, {num_samples} samples")
        super().__init__(dataset, seed=seed)
        if num_samples is not None:
            self.num_samples = int(num_samples)  # what DistributedSampler calls a rank's share of an epoch

    def __iter__(self) -> Iterator[int]:
        start = self.epoch * self.num_samples
        places = [number * self.num_replicas + self.rank for number in range(start, start + self.num_samples)]
        skipped, self._skip = self._skip, 0
        return iter([self._draw(place) for place in places[skipped:]])

    def _draw(self, place: int) -> _EpochIndex:
        length = _num_cases(self.dataset)
        number, position = divmod(place, length)
        generator = torch_generator(derive_seed(self.seed, number))
        return _EpochIndex(int(torch.randperm(length, generator=generator)[position]), number)
