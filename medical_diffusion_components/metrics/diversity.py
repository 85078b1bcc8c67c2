"""How much synthetic volumes differ from each other.

The mean MS-SSIM of pairs of samples, as in Odena et al., "Conditional Image Synthesis with Auxiliary Classifier GANs",
ICML 2017: lower is more diverse. To be read beside the same number for real volumes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from medical_diffusion_components.losses.ms_ssim import MSSSIMLoss

__all__ = ["mean_similarity", "pair_similarities"]


def pair_similarities(
    volumes: Tensor,
    neighbours: int | None = None,
    similarity: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> np.ndarray:
    """MS-SSIM of pairs of volumes, (N, N), symmetric; NaN where two were not compared, as on the diagonal.

    Args:
        volumes: (N, C, H, W, D) in [-1, 1], N > 1.
        neighbours: compare each volume with this many that follow it (after the last comes the first), so that every
            volume is in as many pairs; None compares all pairs.
        similarity: two batches -> (B,), symmetric; None is MS-SSIM.

    Raises:
        ValueError: fewer than two volumes, or no neighbours.
    """
    count = len(volumes)
    if volumes.ndim != 5 or count < 2:
        raise ValueError(f"expected two or more volumes (N, C, H, W, D), got shape {tuple(volumes.shape)}")
    if neighbours is not None and neighbours < 1:
        raise ValueError(f"each volume needs at least one neighbour to be compared with, got {neighbours}")
    similarity = similarity or MSSSIMLoss().similarity
    farthest = count // 2 if neighbours is None else min(neighbours, count // 2)
    found = np.full((count, count), np.nan)
    with torch.no_grad():
        for distance in range(1, farthest + 1):
            for one in range(count):
                other = (one + distance) % count
                if np.isnan(found[one, other]):
                    pair = similarity(volumes[one : one + 1], volumes[other : other + 1])
                    found[one, other] = found[other, one] = float(pair)
    return found


def mean_similarity(similarities: np.ndarray, kept: np.ndarray | None = None) -> float:
    """Mean over the compared pairs of the volumes ``kept`` (indices; None is all).

    Args:
        similarities: as :func:`pair_similarities` gives them.
    """
    kept = np.arange(len(similarities)) if kept is None else kept
    return float(np.nanmean(similarities[np.ix_(kept, kept)]))
