"""The dictionary forms of transforms of one volume."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, Self

import numpy as np
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform

from medical_diffusion_components.transforms.volume_error import NamesItsFailure

__all__ = ["EachVolumed", "RandEachVolumed"]


class EachVolumed(NamesItsFailure, MapTransform):
    """The dictionary form of a transform of one volume, its ``array_form``, called with each of ``keys``.

    Args:
        keys: entries to replace.
        args: arguments of the array form.
        allow_missing_keys: leave out entries that are not there.
        kwargs: arguments of the array form.
    """

    array_form: Callable[..., Any]

    def __init__(self, keys: KeysCollection, *args: Any, allow_missing_keys: bool = False, **kwargs: Any) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transform = self.array_form(*args, **kwargs)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        data = dict(data)
        for key in self.key_iterator(data):
            with self.remembering_failure():
                data[key] = self.transformed(data, key)
        return data

    def transformed(self, data: Mapping[Hashable, Any], key: Hashable) -> Any:
        """What takes the place of ``data[key]``; of transforms that need more than the volume, a method of their own."""
        return self.transform(data[key])


class RandEachVolumed(EachVolumed, RandomizableTransform):
    """The same for a transform that draws: seeded, it seeds the array form."""

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> Self:
        """Seed what is drawn."""
        self.transform.set_random_state(seed, state)
        return self
