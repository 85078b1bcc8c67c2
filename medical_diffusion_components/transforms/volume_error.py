"""The error of a volume that cannot be used, worded so that its cause survives MONAI's traceback."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import ImageMetaKey

__all__ = ["EachVolumed", "NamesItsFailure", "RandEachVolumed", "VolumeError", "file_name", "times"]


class VolumeError(ValueError):
    """A volume that cannot be used; the message names the file, what was expected and what came."""


class NamesItsFailure:
    """Mixin for dictionary transforms: after a failure, the transform's text form says why.

    ``Compose`` turns whatever a transform raises into ``RuntimeError("applying transform <transform>")``, and
    that is the last line of the traceback, where people look. With this mixin it reads
    ``applying transform LoadVolumed: /data/knee.nii.gz: there is no such file``.
    """

    failure: str | None = None

    @contextmanager
    def remembering_failure(self) -> Iterator[None]:
        """Keep the text of a :class:`VolumeError` raised inside, and re-raise it."""
        try:
            yield
        except VolumeError as error:
            self.failure = str(error)
            raise

    def __str__(self) -> str:
        name = type(self).__name__
        return name if self.failure is None else f"{name}: {self.failure}"


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


def times(sizes: Iterable[float]) -> str:
    """Sizes as text, for messages: ``(64, 64, 32)`` is ``64x64x32``, ``(0.5, 0.5, 2)`` is ``0.5x0.5x2``."""
    return "x".join(f"{float(size):.7g}" for size in sizes)


def file_name(img: torch.Tensor) -> str:
    """The file that a volume was read from, for messages."""
    return str(getattr(img, "meta", {}).get(ImageMetaKey.FILENAME_OR_OBJ, "a volume without a file name"))
