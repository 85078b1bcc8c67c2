"""The error of a volume that cannot be used, worded so that its cause survives MONAI's traceback."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from monai.utils import ImageMetaKey

__all__ = ["NamesItsFailure", "VolumeError", "file_name", "times"]


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


def times(sizes: Iterable[float]) -> str:
    """Sizes as text, for messages: ``(64, 64, 32)`` is ``64x64x32``, ``(0.5, 0.5, 2)`` is ``0.5x0.5x2``."""
    return "x".join(f"{float(size):.7g}" for size in sizes)


def file_name(img: torch.Tensor) -> str:
    """The file that a volume was read from, for messages."""
    return str(getattr(img, "meta", {}).get(ImageMetaKey.FILENAME_OR_OBJ, "a volume without a file name"))
