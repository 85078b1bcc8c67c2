"""The gate before a segmentation network: a label map that does not fit its image or the classes is named."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from itertools import product
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import Transform
from monai.transforms.utils import TransformBackends

from medical_diffusion_components.transforms.each_volume import EachVolumed
from medical_diffusion_components.transforms.volume_error import VolumeError, file_name, times

__all__ = ["CheckLabels", "CheckLabelsd"]

LARGEST_SHIFT = 0.1  # of a voxel: what two files of one grid may differ by from rounding in their headers


class CheckLabels(Transform):
    """Return a label map as it came, or raise. One of background alone is valid: a case without any of the structures.

    Args:
        classes: name -> value, from 0 for the background without gaps, such as ``{"background": 0, "breast": 1}``.

    Shape:
        label (1, H, W, D), image (C, H, W, D) -> label

    Raises:
        ValueError: classes that are not numbered 0, 1, 2, ...
        VolumeError: the grids of label and image differ in size or place; values that are no whole numbers or not among
            the classes.
    """

    backend = [TransformBackends.TORCH]

    def __init__(self, classes: Mapping[str, int]) -> None:
        numbers = list(classes.values()) if isinstance(classes, Mapping) else []
        if set(map(type, numbers)) != {int} or sorted(numbers) != list(range(len(numbers))) or len(numbers) < 2:
            raise ValueError(
                "classes must be names with their numbers, {background: 0, name: 1, other: 2, ...} without gaps, got "
                f"{classes}"
            )
        self.classes = dict(classes)

    def __call__(  # type: ignore[override]  # two volumes, where MONAI's base takes one
        self, label: torch.Tensor, image: torch.Tensor
    ) -> torch.Tensor:
        problem = self._grid_problem(label, image) or self._value_problem(label)
        if problem:
            raise VolumeError(f"{file_name(label)}: {problem}")
        return label

    def _grid_problem(self, label: torch.Tensor, image: torch.Tensor) -> str | None:
        if label.ndim != 4 or label.shape[0] != 1:
            return f"expected one label map (1, H, W, D), got shape {tuple(label.shape)}"
        if label.shape[1:] != image.shape[1:]:
            return (
                f"the label has {times(label.shape[1:])} voxels, its image {file_name(image)} has "
                f"{times(image.shape[1:])}: resample the label onto the image's grid"
            )
        if not isinstance(label, MetaTensor) or not isinstance(image, MetaTensor):
            return None
        corners = np.array([[*corner, 1.0] for corner in product(*((0, n - 1) for n in label.shape[1:]))])
        one, other = (np.asarray(volume.affine, dtype=np.float64) for volume in (label, image))
        shift = np.linalg.norm((corners @ (one - other).T)[:, :3], axis=1).max()
        voxel = np.linalg.norm(other[:3, :3], axis=0).min()
        if shift > LARGEST_SHIFT * voxel:
            return (
                f"the label lies elsewhere than its image {file_name(image)}: their corners are up to {shift:.3g} mm apart "
                f"(voxels of {voxel:.3g} mm): they were saved with different affines, or drawn on another series"
            )
        return None

    def _value_problem(self, label: torch.Tensor) -> str | None:
        values, counts = torch.unique(label.as_tensor() if isinstance(label, MetaTensor) else label, return_counts=True)
        fractions = values[(values != values.round()) | values.isinf()]  # NaN does not equal itself
        if len(fractions):
            return (
                f"label values must be whole numbers, got {fractions[0]:.9g}: was it resampled by other than nearest?"
            )
        known = {f"{value}: {name}" for name, value in self.classes.items()}
        unknown = {int(v): int(n) for v, n in zip(values, counts) if int(v) not in self.classes.values()}
        if unknown:
            counts = ", ".join(f"{value} ({count} voxels)" for value, count in list(unknown.items())[:5])
            return f"label values outside the expected classes {{{', '.join(sorted(known))}}}: {counts}"
        return None


class CheckLabelsd(EachVolumed):
    """Dictionary form of :class:`CheckLabels`.

    Args:
        keys: the label map.
        image_key: its image.
        classes: as for :class:`CheckLabels`.
        kwargs: ``allow_missing_keys``, to skip keys that are not there.
    """

    backend = CheckLabels.backend
    array_form = CheckLabels

    def __init__(self, keys: KeysCollection, image_key: str, classes: Mapping[str, int], **kwargs: Any) -> None:
        super().__init__(keys, classes, **kwargs)
        self.image_key = image_key

    def transformed(self, data: Mapping[Hashable, Any], key: Hashable) -> torch.Tensor:
        """The label map as it came, if it belongs to the image."""
        try:
            return self.transform(data[key], data[self.image_key])
        except VolumeError as error:
            if "case_id" not in data:
                raise
            raise VolumeError(f"case {data['case_id']}: {error}") from error
