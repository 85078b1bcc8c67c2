"""TorchIO's augmentations as random MONAI transforms.

Pérez-García et al., "TorchIO: a Python library for efficient loading, preprocessing, augmentation and patch-based sampling
of medical images in deep learning", Computer Methods and Programs in Biomedicine 208, 2021.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, RandomizableTransform
from monai.transforms.utils import TransformBackends
from monai.utils import ensure_tuple

from medical_diffusion_components.chance import seeded

__all__ = ["RandTorchIOd"]


class RandTorchIOd(RandomizableTransform, MapTransform):
    """Apply a TorchIO transform to images and labels together.

    Images and labels pass as one TorchIO subject with their affines, so that both move together: labels by the nearest
    voxel unless the transform says otherwise, and untouched where only intensities change. What is drawn follows from
    MONAI's random state alone: TorchIO draws from torch's global generator, which is seeded for the call and put back.

    Several of TorchIO's intensity transforms (gamma, bias field) are meant for magnitudes, where nothing is 0. The
    intensities are therefore mapped from ``intensity_range`` to [0, 1] before, and back after; they may then leave the
    range a little.

    Args:
        keys: the images.
        transform: TorchIO transform, with its own probability ``p``.
        label_keys: the label maps that belong to them.
        intensity_range: intensities that mean nothing and full signal; None: as they are.
        allow_missing_keys: skip keys that are not there.

    Shape:
        (C, H, W, D) -> (C, H, W, D)

    Raises:
        ValueError: an invalid intensity range, or a transform that cannot be called.
    """

    backend = [TransformBackends.TORCH]

    def __init__(
        self,
        keys: KeysCollection,
        transform: Callable,
        label_keys: KeysCollection = (),
        intensity_range: Sequence[float] | None = (-1.0, 1.0),
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob=1.0)  # whether to apply it is the TorchIO transform's own draw
        if not callable(transform):
            raise ValueError(f"expected a TorchIO transform such as torchio.RandomFlip(), got {transform!r}")
        low, high = (0.0, 1.0) if intensity_range is None else (float(limit) for limit in intensity_range)
        if not low < high:
            raise ValueError(f"expected an intensity range (low, high), got {intensity_range}")
        self.transform = transform
        self.label_keys = ensure_tuple(label_keys)
        self.low, self.width = low, high - low

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        import torchio

        data = dict(data)
        subject = torchio.Subject(
            **{
                str(key): torchio.ScalarImage(
                    tensor=(plain(data[key]) - self.low) / self.width, affine=affine(data[key])
                )
                for key in self.key_iterator(data)
            },
            **{
                str(key): torchio.LabelMap(tensor=plain(data[key]), affine=affine(data[key]))
                for key in self.label_keys
                if key in data or not self.allow_missing_keys
            },
        )
        with seeded(self.R.randint(2**31)):
            changed = self.transform(subject)
        if changed is subject:  # not this time: mapping there and back would change the last digit
            return data
        for key in self.key_iterator(data):
            data[key] = like(changed[key].data * self.width + self.low, changed[key].affine, data[key])
        for key in self.label_keys:
            if key in data:
                data[key] = like(changed[key].data, changed[key].affine, data[key])
        return data


def plain(volume: torch.Tensor) -> torch.Tensor:
    """Without MONAI's metadata, in float32."""
    return (volume.as_tensor() if isinstance(volume, MetaTensor) else volume).float()


def affine(volume: torch.Tensor) -> np.ndarray:
    """Voxels to mm; those of a volume that does not say are 1 mm."""
    return np.asarray(volume.affine, dtype=np.float64) if isinstance(volume, MetaTensor) else np.eye(4)


def like(voxels: torch.Tensor, affine: np.ndarray, volume: torch.Tensor) -> torch.Tensor:
    """``voxels`` with the kind and metadata of ``volume``."""
    voxels = voxels.to(volume.dtype)
    if not isinstance(volume, MetaTensor):
        return voxels
    made = MetaTensor(voxels, meta=volume.meta, applied_operations=volume.applied_operations)
    made.affine = torch.as_tensor(affine)
    return made
