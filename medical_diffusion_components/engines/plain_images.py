"""Images of a batch as trainers take them."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["plain_images"]


def plain_images(batchdata: dict, device: torch.device, non_blocking: bool = False, key: str = "image") -> Tensor:
    """``batchdata[key]`` (B, C, H, W, D) as a plain tensor on ``device``, without MONAI's metadata."""
    image = batchdata[key]
    image = image.as_tensor() if hasattr(image, "as_tensor") else image
    return image.to(device, non_blocking=non_blocking)
