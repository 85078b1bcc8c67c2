"""Intensities for a network: as preparation fixed them for all volumes, or by the minimum and maximum of each."""

from __future__ import annotations

import functools
import json
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from monai.transforms import ScaleIntensity, Transform
from monai.transforms.utils import TransformBackends

from medical_diffusion_components.transforms.each_volume import EachVolumed
from medical_diffusion_components.transforms.volume_error import VolumeError, file_name

__all__ = [
    "INTENSITY_RANGE",
    "WINDOW",
    "ScaleAsPrepared",
    "ScaleAsPreparedd",
    "dataset_scale",
    "fixed_scale",
    "scale_facts",
]

INTENSITY_RANGE = "intensity_range"  # of a case: the voxel values that stand for the ends of its window
WINDOW = "window"  # of a case: the intensities, such as Hounsfield units, that the ends of the range are
WRITTEN = (0.0, 255.0)  # voxel values of -1 and 1 in files of a generator or a first stage
_LEVELS = 4  # folders above a file in which its dataset.json is looked for
_SLACK = 1e-3  # of the range: rounding of stored voxels


def scale_facts(intensity_range: Sequence[float], window: Sequence[float] | None) -> dict[str, list[float]]:
    """What a case says of its scale: voxels from ``intensity_range`` are intensities of ``window``; None: nothing."""
    return {} if window is None else {INTENSITY_RANGE: list(intensity_range), WINDOW: list(window)}


def fixed_scale(case: Mapping[Any, Any]) -> dict[str, Any]:
    """What a case says of its scale, for a reader that passes on nothing else of it."""
    return {key: case[key] for key in (INTENSITY_RANGE, WINDOW) if key in case}


def dataset_scale(path: Path, content: Mapping[str, Any]) -> dict[str, list[float]]:
    """What a ``dataset.json`` says of the scale of all its cases, as :func:`scale_facts`.

    Raises:
        ValueError: a window without two ascending limits or a range.
    """
    decided = content.get("decided")
    scale = decided.get("scale") if isinstance(decided, dict) else None
    if not isinstance(scale, dict) or scale.get("limits_from") != "window":
        return {}
    try:
        found = scale_facts(*([float(value) for value in scale[name]] for name in ("range", "limits")))
    except (KeyError, TypeError, ValueError):
        found = {}
    if [len(limits) for limits in found.values()] != [2, 2] or not all(low < high for low, high in found.values()):
        raise ValueError(
            f'{path}: a scale by a window needs "limits" and "range", two ascending numbers each, got {scale}'
        )
    return found


def scale_beside(volume: str) -> dict[str, list[float]]:
    """The scale of a file whose case does not state it, from the ``dataset.json`` above it that lists it; else empty."""
    file = Path(volume)
    if not file.is_absolute():
        return {}
    for folder in list(file.parents)[:_LEVELS]:
        listing = folder / "dataset.json"
        if listing.is_file():
            scale, files = _read_listing(listing, listing.stat().st_mtime_ns)
            return dict(scale) if file.relative_to(folder).as_posix() in files else {}
    return {}


@functools.lru_cache(maxsize=16)
def _read_listing(path: Path, _: int) -> tuple[dict[str, list[float]], frozenset[str]]:
    """The scale in a ``dataset.json`` and the images that it lists."""
    try:
        content = json.loads(path.read_text())
    except ValueError:
        return {}, frozenset()  # not a datalist; loading cases from it raises an error that says so
    if not isinstance(content, dict):
        return {}, frozenset()
    entries = [entry for split in content.values() if isinstance(split, list) for entry in split]
    return dataset_scale(path, content), frozenset(
        str(e["image"]) for e in entries if isinstance(e, dict) and "image" in e
    )


class ScaleAsPrepared(Transform):
    """Map intensities linearly to ``[minv, maxv]``.

    A window that preparation fixed means the same intensity in every volume, so it is kept. Without one, each volume is
    mapped by its own minimum and maximum.

    Args:
        minv: lowest intensity afterwards.
        maxv: highest intensity afterwards.
        trained_window: the window of the volumes that a network was trained with. Volumes that were not prepared are
            clipped to it; volumes that were prepared must have the same. None: any.
        clip: let what lies outside a fixed range be cut off, as after an augmentation; otherwise it is an error.

    Shape:
        (C, H, W, D) -> (C, H, W, D)

    Raises:
        VolumeError: a volume outside the range that its data set states, prepared with another window than the network
            was trained with, or with hardly any contrast inside that window.
    """

    backend = [TransformBackends.TORCH]

    def __init__(
        self,
        minv: float = -1.0,
        maxv: float = 1.0,
        trained_window: Sequence[float] | None = None,
        clip: bool = False,
    ) -> None:
        self.minv, self.maxv = float(minv), float(maxv)
        self.trained_window = None if trained_window is None else [float(value) for value in trained_window]
        self.clip = clip
        self.by_volume = ScaleIntensity(minv=self.minv, maxv=self.maxv)

    def __call__(
        self,
        img: torch.Tensor,
        intensity_range: Sequence[float] | None = None,
        window: Sequence[float] | None = None,
    ) -> torch.Tensor:
        """Args: img: the volume. intensity_range, window: what its data set states, if preparation fixed them."""
        if intensity_range is not None:
            return self._between(img, *self._stated(img, intensity_range, window))
        if self.trained_window is None:
            return cast(torch.Tensor, self.by_volume(img))  # a tensor in, a tensor out
        low, high = self.trained_window
        least, greatest = float(img.min()), float(img.max())
        if min(greatest, high) - max(least, low) < 0.01 * (high - low):
            raise VolumeError(
                f"{file_name(img)}: expected intensities for the window [{low:g}, {high:g}] that the network was trained "
                f"with, got [{least:g}, {greatest:g}]: volumes that were scaled before are read with their dataset.json"
            )
        return self._between(img, low, high)

    def _stated(
        self, img: torch.Tensor, intensity_range: Sequence[float], window: Sequence[float] | None
    ) -> tuple[float, float]:
        low, high = (float(value) for value in intensity_range)
        if self.trained_window is not None and list(map(float, window or ())) != self.trained_window:
            raise VolumeError(
                f"{file_name(img)}: expected the window {self.trained_window} that the network was trained with, got a "
                f"volume prepared with {window and list(window)}: prepare it with --limits_from window --limits "
                f'"{self.trained_window}"'
            )
        least, greatest, slack = float(img.min()), float(img.max()), _SLACK * (high - low)
        if not self.clip and (least < low - slack or greatest > high + slack):
            raise VolumeError(
                f"{file_name(img)}: expected intensities in [{low:g}, {high:g}], as its dataset.json states, got "
                f"[{least:g}, {greatest:g}]: the file was changed after preparation, run `prepare` again"
            )
        return low, high

    def _between(self, img: torch.Tensor, low: float, high: float) -> torch.Tensor:
        scaled = (img - low) / (high - low) * (self.maxv - self.minv) + self.minv
        return scaled.clamp(self.minv, self.maxv)


class ScaleAsPreparedd(EachVolumed):
    """Dictionary form of :class:`ScaleAsPrepared`; the other arguments are those of that class.

    Range and window are those of the case, as ``load_cases`` gives them. A file given without them, as by an annotation
    server, has those of the ``dataset.json`` above it, if that lists the file. Afterwards the case states ``minv`` and
    ``maxv`` as its range, so that it can be scaled again once it was augmented.
    """

    backend = ScaleAsPrepared.backend
    array_form = ScaleAsPrepared

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        files = (file_name(data[key]) for key in self.key_iterator(dict(data)))
        scale: dict[Any, Any] = fixed_scale(data) or next(filter(None, map(scale_beside, files)), {})
        scaled = super().__call__({**data, **scale})
        return scaled | ({INTENSITY_RANGE: [self.transform.minv, self.transform.maxv]} if scale else {})

    def transformed(self, data: Mapping[Hashable, Any], key: Hashable) -> torch.Tensor:
        """The volume between the ends of its own range, or of the window that its data set states."""
        return self.transform(data[key], **fixed_scale(data))
