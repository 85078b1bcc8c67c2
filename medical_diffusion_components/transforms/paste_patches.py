"""Put what a network painted into the holes of a volume, and leave the rest as it was."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Transform
from monai.transforms.utils import TransformBackends

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


class PastePatchesd(MapTransform):
    """Dictionary form of :class:`PastePatches`.

    Args:
        keys: painted volumes.
        target_key: the original.
        mask_key: the mask.
    """

    backend = PastePatches.backend

    def __init__(self, keys: KeysCollection, target_key: str = "target", mask_key: str = "mask") -> None:
        super().__init__(keys)
        self.paste = PastePatches()
        self.target_key = target_key
        self.mask_key = mask_key

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        data = dict(data)
        for key in self.key_iterator(data):
            data[key] = self.paste(data[key], data[self.target_key], data[self.mask_key])
        return data
