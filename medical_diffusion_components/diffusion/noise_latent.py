"""Starting noise of a synthetic volume."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from numbers import Integral
from typing import Any

from monai.config import KeysCollection
from monai.transforms import MapTransform, Transform
from torch import Tensor

from medical_diffusion_components.chance import normal_of_seed

__all__ = ["NoiseLatent", "NoiseLatentd"]


class NoiseLatent(Transform):
    """Draw standard normal noise from ``seed`` plus the number of the volume, always on the CPU.

    The same seed and number give the same noise on every machine, whatever else is in the batch.

    Args:
        shape: (C, h, w, d) of the latent.
        seed: seed of volume 0; volume i has seed + i.
    """

    def __init__(self, shape: Sequence[int], seed: int = 0) -> None:
        self.shape = tuple(int(n) for n in shape)
        self.seed = int(seed)

    def __call__(self, number: int = 0) -> Tensor:
        return normal_of_seed(self.seed + number, self.shape)


class NoiseLatentd(MapTransform):
    """Dictionary form of :class:`NoiseLatent`: entries that hold a number become noise, and ``seed_key`` the seed.

    A file name (as an annotation server passes) counts as volume 0.

    Args:
        keys: entries to replace.
        shape: (C, h, w, d) of the latent.
        seed: seed of volume 0.
        seed_key: entry that receives the seed of the volume.

    Raises:
        ValueError: an entry that is neither a whole number nor a file name.
    """

    def __init__(self, keys: KeysCollection, shape: Sequence[int], seed: int = 0, seed_key: str = "seed") -> None:
        super().__init__(keys)
        self.noise = NoiseLatent(shape, seed)
        self.seed_key = seed_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        data = dict(data)
        for key in self.key_iterator(data):
            number = self._number(key, data[key])
            data[key] = self.noise(number)
            data[self.seed_key] = self.noise.seed + number
        return data

    @staticmethod
    def _number(key: Hashable, value: Any) -> int:
        if isinstance(value, Integral):  # NumPy's integers, too
            return int(value)
        if isinstance(value, (str, os.PathLike)):
            return 0
        raise ValueError(f"expected the number of a volume or a file name at {key!r}, got {value!r}")
