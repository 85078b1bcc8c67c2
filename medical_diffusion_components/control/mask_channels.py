"""What the control branch sees of a label map: a channel per class and, if asked for, distances to each border."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Transform
from scipy import ndimage
from torch import Tensor

__all__ = ["MaskChannels", "MaskChannelsd", "num_mask_channels", "signed_distance"]


def num_mask_channels(num_classes: int, distance: float | None = None) -> int:
    """Channels that :class:`MaskChannels` makes: one per class, and as many again less the background's with distances."""
    return num_classes if distance is None else 2 * num_classes - 1


def signed_distance(inside: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Distance in mm of each voxel's centre to the nearest centre on the other side of a border, negative inside.

    Half a voxel is taken off, so that the two sides of a border are equally far from it. Where there is nothing inside
    the distance is infinite, and where there is nothing outside minus infinite.

    Args:
        inside: (H, W, D) bool.
        spacing: mm per voxel along H, W, D.
    """
    if not inside.any():
        return np.full(inside.shape, np.inf)
    if inside.all():
        return np.full(inside.shape, -np.inf)
    half = min(spacing) / 2
    outer = ndimage.distance_transform_edt(~inside, spacing)
    inner = ndimage.distance_transform_edt(inside, spacing)
    return np.where(inside, half - inner, outer - half)


class MaskChannels(Transform):
    """One-hot classes of a label map, and signed distances to the border of each class but the background.

    Args:
        num_classes: values of the label map are 0 to ``num_classes`` - 1.
        distance: mm at which distances end; they are divided by it, so they lie in [-1, 1]. None: no distances.
        spacing: mm per voxel along H, W, D; for distances.

    Shape:
        (H, W, D) whole numbers -> (``num_classes``, H, W, D), or (2 ``num_classes`` - 1, H, W, D), float32

    Raises:
        ValueError: fewer than two classes, a distance that is not above 0; a label outside the classes.
    """

    def __init__(self, num_classes: int, distance: float | None = None, spacing: Sequence[float] = (1, 1, 1)) -> None:
        if num_classes < 2:
            raise ValueError(f"expected a background and at least one class, got {num_classes} classes")
        if distance is not None and not distance > 0:
            raise ValueError(f"expected a largest distance in mm above 0, or none, got {distance}")
        self.num_classes = num_classes
        self.distance = distance
        self.spacing = [float(mm) for mm in spacing]

    def __call__(self, labels: np.ndarray) -> Tensor:
        labels = np.asarray(labels)
        if labels.min() < 0 or labels.max() >= self.num_classes:
            found = np.unique(labels).tolist()
            raise ValueError(f"expected labels from 0 to {self.num_classes - 1}, got {found[:10]}")
        classes = [labels == value for value in range(self.num_classes)]
        channels = [inside.astype(np.float32) for inside in classes]
        if self.distance is not None:
            distances = [signed_distance(inside, self.spacing) / self.distance for inside in classes[1:]]
            channels += [far.clip(-1, 1).astype(np.float32) for far in distances]
        return torch.from_numpy(np.stack(channels))


class MaskChannelsd(MapTransform):
    """Dictionary form of :class:`MaskChannels`."""

    def __init__(
        self,
        keys: KeysCollection,
        num_classes: int,
        distance: float | None = None,
        spacing: Sequence[float] = (1, 1, 1),
    ) -> None:
        super().__init__(keys)
        self.channels = MaskChannels(num_classes, distance, spacing)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        data = dict(data)
        for key in self.key_iterator(data):
            data[key] = self.channels(data[key])
        return data
