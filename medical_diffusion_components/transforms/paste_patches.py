"""Put what a network painted into the holes of a volume, and leave the rest as it was."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import torch
from monai.config import KeysCollection
from monai.transforms import Transform
from monai.transforms.utils import TransformBackends

from medical_diffusion_components.transforms.each_volume import EachVolumed

__all__ = ["PastePatches", "PastePatchesd"]


class PastePatches(Transform):
    """The painted volume where the mask is 1 (removed), the original where it is 0 (kept).

    Shape:
        painted, original (C, H, W, D), mask (1, H, W, D) -> (C, H, W, D)
    """

    backend = [TransformBackends.TORCH]

    def __call__(  # type: ignore[override]  # three volumes, where MONAI's base takes one
        self, painted: torch.Tensor, original: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        return torch.where(mask > 0, painted, original)


class PastePatchesd(EachVolumed):
    """Dictionary form of :class:`PastePatches`.

    Args:
        keys: painted volumes.
        target_key: the original.
        mask_key: the mask.
    """

    backend = PastePatches.backend
    array_form = PastePatches

    def __init__(self, keys: KeysCollection, target_key: str = "target", mask_key: str = "mask") -> None:
        super().__init__(keys)
        self.target_key = target_key
        self.mask_key = mask_key

    def transformed(self, data: Mapping[Hashable, torch.Tensor], key: Hashable) -> torch.Tensor:
        """The original volume with what was painted into its holes."""
        return self.transform(data[key], data[self.target_key], data[self.mask_key])
