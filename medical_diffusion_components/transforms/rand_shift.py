"""Move a volume by a few whole voxels."""

from __future__ import annotations

import torch
from monai.transforms import RandomizableTransform
from torch import Tensor

__all__ = ["RandShift"]


class RandShift(RandomizableTransform):
    """Move a volume by a random number of whole voxels along each axis; what was at the border fills the gap.

    Args:
        most: largest number of voxels in either direction; 0 changes nothing.

    Shape:
        (C, H, W, D) -> the same

    Raises:
        ValueError: a negative number; when called, a volume that is not larger than it.
    """

    def __init__(self, most: int = 0) -> None:
        super().__init__(prob=1.0)
        if most < 0:
            raise ValueError(f"expected a shift of at least 0 voxels, got {most}")
        self.most = int(most)

    def __call__(self, image: Tensor) -> Tensor:
        if self.most == 0:
            return image
        if min(image.shape[1:]) <= self.most:
            raise ValueError(f"a volume {tuple(image.shape[1:])} cannot be shifted by up to {self.most} voxels")
        for axis, size in enumerate(image.shape[1:], 1):
            source = torch.arange(size, device=image.device) - int(self.R.randint(-self.most, self.most + 1))
            image = image.index_select(axis, source.clamp(0, size - 1))
        return image
