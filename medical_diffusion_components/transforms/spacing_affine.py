"""Give a synthetic volume its place in the world."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform

__all__ = ["SpacingAffine", "SpacingAffined"]


class SpacingAffine(Transform):
    """Attach an RAS affine with the given voxel spacing; the origin of the world is the centre of the volume.

    Args:
        spacing: mm per voxel along H, W, D.

    Shape:
        (C, H, W, D) -> (C, H, W, D), as a ``MetaTensor``

    Raises:
        ValueError: not three positive numbers.
    """

    def __init__(self, spacing: Sequence[float]) -> None:
        self.spacing = [float(s) for s in spacing]
        if len(self.spacing) != 3 or not all(0 < s < float("inf") for s in self.spacing):
            raise ValueError(f"spacing must be three positive numbers in mm, got {list(spacing)}")

    def __call__(self, volume: torch.Tensor) -> MetaTensor:
        affine = torch.diag(torch.tensor([*self.spacing, 1.0], dtype=torch.float64))
        affine[:3, 3] = -affine.diagonal()[:3] * (torch.tensor(volume.shape[1:], dtype=torch.float64) - 1) / 2
        plain = volume.as_tensor() if isinstance(volume, MetaTensor) else volume
        return MetaTensor(plain, affine=affine)


class SpacingAffined(MapTransform):
    """Dictionary form of :class:`SpacingAffine`."""

    def __init__(self, keys: KeysCollection, spacing: Sequence[float]) -> None:
        """Args: keys: volumes; spacing: see :class:`SpacingAffine`."""
        super().__init__(keys)
        self.assign = SpacingAffine(spacing)

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        data = dict(data)
        for key in self.key_iterator(data):
            data[key] = self.assign(data[key])
        return data
