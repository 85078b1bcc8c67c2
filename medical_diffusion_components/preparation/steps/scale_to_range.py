"""Intensities to [-1, 1], and the choice of what becomes -1 and 1."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Transform
from monai.transforms.utils import TransformBackends

from medical_diffusion_components.preparation.steps.notes import add_note
from medical_diffusion_components.transforms.volume_error import NamesItsFailure, VolumeError, file_name

__all__ = ["ScaleToRange", "ScaleToRanged"]

_DARK = 0.2  # of the range


class ScaleToRange(Transform):
    """Map intensities linearly so that the lower limit becomes -1 and the upper one 1; what lies outside is cut off.

    Args:
        limits_from: ``"volume"``: the volume's own minimum and maximum. ``"percentiles"``: two of its percentiles, so
            that a few very bright voxels do not darken the rest. ``"window"``: two fixed intensities, the same for all
            volumes, so that a value means the same everywhere (Hounsfield units).
        limits: the percentiles, in [0, 100], or the window, in the volume's unit; None for ``"volume"``.

    Shape:
        (C, H, W, D) -> (C, H, W, D)

    Raises:
        VolumeError: the limits of the volume are equal or not finite.
    """

    backend = [TransformBackends.TORCH]

    def __init__(
        self,
        limits_from: Literal["volume", "percentiles", "window"] = "volume",
        limits: Sequence[float] | None = None,
    ) -> None:
        if limits_from not in ("volume", "percentiles", "window"):
            raise ValueError(f"limits_from must be volume, percentiles or window, got {limits_from!r}")
        self.given: tuple[float, float] | None = None
        if limits_from != "volume":
            if limits is None or len(limits) != 2 or not limits[0] < limits[1]:
                raise ValueError(f"{limits_from} needs two limits, the lower one first, got {limits}")
            if limits_from == "percentiles" and not (0 <= limits[0] and limits[1] <= 100):
                raise ValueError(f"percentiles lie in [0, 100], got {list(limits)}")
            self.given = (float(limits[0]), float(limits[1]))
        self.limits_from = limits_from

    def __call__(self, img: torch.Tensor) -> torch.Tensor:
        low, high = self.limits(img)
        return ((img - low) / (high - low) * 2 - 1).clamp_(-1, 1)

    def limits(self, img: torch.Tensor) -> tuple[float, float]:
        """The intensities of this volume that become -1 and 1."""
        if self.given is not None and self.limits_from == "window":
            return self.given
        if self.given is not None:
            low, high = (float(value) for value in np.percentile(np.asarray(img), self.given))
        else:
            low, high = float(img.min()), float(img.max())
        if not (np.isfinite([low, high]).all() and low < high):
            raise VolumeError(f"{file_name(img)}: cannot be scaled, the limits are {low:g} and {high:g}")
        return low, high


def _is_dark(scaled: torch.Tensor) -> bool:
    """Whether all but a thousandth of the voxels lie in the lowest fifth of the range: a few bright ones set its end."""
    voxels = np.asarray(scaled).ravel()
    return bool(np.quantile(voxels, 0.999) < 2 * _DARK - 1)


class ScaleToRanged(NamesItsFailure, MapTransform):
    """Dictionary form of :class:`ScaleToRange`; notes the limits of each case, from which intensities follow."""

    backend = ScaleToRange.backend

    def __init__(
        self,
        keys: KeysCollection,
        limits_from: Literal["volume", "percentiles", "window"] = "volume",
        limits: Sequence[float] | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        """Args: keys: volumes; the others: see :class:`ScaleToRange`."""
        super().__init__(keys, allow_missing_keys)
        self.scale = ScaleToRange(limits_from, limits)

    def decisions(self) -> dict[str, Any]:
        """What -1 and 1 are, for dataset.json; with a window they are the same in every volume and must stay so."""
        limits = None if self.scale.given is None else list(self.scale.given)
        return {"scale": {"limits_from": self.scale.limits_from, "limits": limits, "range": [-1.0, 1.0]}}

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        data = dict(data)
        for key in self.key_iterator(data):
            with self.remembering_failure():
                add_note(data, "intensity_limits", list(self.scale.limits(data[key])))
                data[key] = self.scale(data[key])
                if self.scale.limits_from == "volume" and _is_dark(data[key]):
                    add_note(data, "few_voxels_set_the_limits", True)
        return data
