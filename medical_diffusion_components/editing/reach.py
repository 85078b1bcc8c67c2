"""Which positions of a latent have to be redrawn when a region of the volume is replaced.

A position is free if its voxels hold any of the region. It is also free if the encoder carries the region's content
there: that is measured, by encoding the volume with several contents in the region, so that group norms count, whose
reach a receptive field does not show.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from medical_diffusion_components.networks.vqgan import VQGAN

__all__ = ["free_positions"]


@torch.no_grad()
def free_positions(first_stage: VQGAN, contents: Sequence[Tensor], mask: Tensor, tolerance: float = 0.2) -> Tensor:
    """Positions of the latent that depend on what is in the region.

    Args:
        first_stage: with its weights.
        contents: the volume with two or more contents in the region, (1, C, H, W, D) each in [-1, 1]; the same outside.
        mask: the region, (H, W, D) bool.
        tolerance: how far a position may move between two contents and still count as known: share of its channel's
            standard deviation over the latent.

    Shape:
        -> (h, w, d) bool

    Raises:
        ValueError: fewer than two contents, or a tolerance that is not positive.
    """
    if len(contents) < 2 or not tolerance > 0:
        raise ValueError(f"expected two contents and a positive tolerance, got {len(contents)} and {tolerance}")
    touched = F.max_pool3d(mask[None, None].float(), first_stage.compression)[0, 0] > 0  # (h, w, d)
    latents = torch.stack([first_stage.encode_stage_2_inputs(content)[0].float() for content in contents])
    deviation = latents[0].flatten(1).std(1).clamp(min=1e-12)[:, None, None, None]  # (C, 1, 1, 1)
    moved = ((latents.amax(0) - latents.amin(0)) / deviation).amax(0)  # (h, w, d)
    return touched.to(moved.device) | (moved > tolerance)
