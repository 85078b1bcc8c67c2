"""Give a synthetic volume its place in the world."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.data import MetaTensor
from monai.transforms import Transform

from medical_diffusion_components.orientation import world_axes
from medical_diffusion_components.transforms.each_volume import EachVolumed

__all__ = ["SpacingAffine", "SpacingAffined"]


class SpacingAffine(Transform):
    """Attach an affine with the given voxel spacing; the origin of the world is the centre of the volume.

    Args:
        spacing: mm per voxel along H, W, D.
        axcodes: where H, W and D point in the patient; ``"RAS"`` is right, anterior, superior.

    Shape:
        (C, H, W, D) -> (C, H, W, D), as a ``MetaTensor``

    Raises:
        ValueError: not three positive numbers, or invalid ``axcodes``.
    """

    def __init__(self, spacing: Sequence[float], axcodes: str = "RAS") -> None:
        self.axes = world_axes(axcodes)
        self.spacing = [float(s) for s in spacing]
        if len(self.spacing) != 3 or not all(0 < s < float("inf") for s in self.spacing):
            raise ValueError(f"spacing must be three positive numbers in mm, got {list(spacing)}")

    def __call__(self, volume: torch.Tensor) -> MetaTensor:
        affine = torch.zeros(4, 4, dtype=torch.float64)
        affine[3, 3] = 1
        for column, (spacing, (axis, sign)) in enumerate(zip(self.spacing, self.axes)):
            affine[axis, column] = sign * spacing
        affine[:3, 3] = -affine[:3, :3] @ (torch.tensor(volume.shape[1:], dtype=torch.float64) - 1) / 2
        plain = volume.as_tensor() if isinstance(volume, MetaTensor) else volume
        return MetaTensor(plain, affine=affine)


class SpacingAffined(EachVolumed):
    """Dictionary form of :class:`SpacingAffine`; the other arguments are those of that class."""

    array_form = SpacingAffine
