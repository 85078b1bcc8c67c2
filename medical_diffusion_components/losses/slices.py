"""One random slice per volume, for the losses and discriminators that look at slices."""

from __future__ import annotations

import torch
from torch import Tensor

from medical_diffusion_components.chance import draw_integers

__all__ = ["random_slices"]


def random_slices(*volumes: Tensor) -> tuple[Tensor, ...]:
    """Take the same random depth slice of each volume from every batch, another for each volume of a batch.

    Args:
        volumes: batches of one shape, for example real volumes and their reconstructions.

    Shape:
        each (B, C, H, W, D) -> (B, C, H, W)
    """
    batch, depth = volumes[0].shape[0], volumes[0].shape[-1]
    depths = draw_integers(depth, batch, volumes[0].device)
    rows = torch.arange(batch, device=volumes[0].device)
    return tuple(volume[rows, ..., depths] for volume in volumes)
