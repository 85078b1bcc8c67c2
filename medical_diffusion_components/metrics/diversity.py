"""How much synthetic volumes differ from each other.

The mean MS-SSIM of pairs of samples, as in Odena et al., "Conditional Image Synthesis with Auxiliary Classifier GANs",
ICML 2017: lower is more diverse. To be read beside the same number for real volumes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from medical_diffusion_components.losses.ms_ssim import MSSSIMLoss

__all__ = ["mean_similarity", "pair_similarities", "published_ms_ssim"]


def pair_similarities(
    volumes: Tensor | Sequence[Tensor],
    neighbours: int | None = None,
    similarity: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> np.ndarray:
    """MS-SSIM of pairs of volumes, (N, N), symmetric; NaN where two were not compared, as on the diagonal.

    Args:
        volumes: (N, C, H, W, D) in [-1, 1], N > 1; or anything that gives volume i, (C, H, W, D), when it is asked. It is
            asked for volume i and its neighbours, then for volume i + 1 and its; keep the last ``neighbours + 1``, and each
            is read about once.
        neighbours: compare each volume with this many that follow it (after the last comes the first), so that every
            volume is in as many pairs; None compares all pairs.
        similarity: two batches -> (B,), symmetric; None is MS-SSIM.

    Raises:
        ValueError: fewer than two volumes, or no neighbours.
    """
    count = len(volumes)
    if count < 2 or volumes[0].ndim != 4:
        shape = (count, *volumes[0].shape) if count else (0,)
        raise ValueError(f"expected two or more volumes (N, C, H, W, D), got shape {shape}")
    if neighbours is not None and neighbours < 1:
        raise ValueError(f"each volume needs at least one neighbour to be compared with, got {neighbours}")
    similarity = similarity or MSSSIMLoss().similarity
    farthest = count // 2 if neighbours is None else min(neighbours, count // 2)
    found = np.full((count, count), np.nan)
    with torch.no_grad():
        for one in range(count):
            for distance in range(1, farthest + 1):
                other = (one + distance) % count
                if np.isnan(found[one, other]):
                    pair = similarity(volumes[one][None], volumes[other][None])
                    found[one, other] = found[other, one] = float(pair)
    return found


def mean_similarity(similarities: np.ndarray, kept: np.ndarray | None = None) -> float:
    """Mean over the compared pairs of the volumes ``kept`` (indices; None is all).

    Args:
        similarities: as :func:`pair_similarities` gives them.
    """
    kept = np.arange(len(similarities)) if kept is None else kept
    return float(np.nanmean(similarities[np.ix_(kept, kept)]))


def published_ms_ssim(x: Tensor, y: Tensor) -> Tensor:
    """MS-SSIM as the published comparisons of 64^3 brains computed it, for comparison with their numbers alone.

    It differs from the standard in three ways: the constants are those of a range of 1 although the data have one of 2;
    there are five scales whatever the size; and the product takes the last scale's whole similarity, with its weight, once
    for each of the four scales before it. Kwon et al., MICCAI 2019.

    Args:
        x, y: (B, 1, H, W, D) in [-1, 1].

    Returns:
        (B,); NaN where a mean contrast is negative and has no root.
    """
    weights = torch.tensor([0.0448, 0.2856, 0.3001, 0.2363, 0.1333], device=x.device)
    x, y = x.float(), y.float()
    contrasts, wholes = [], []
    for scale in range(len(weights)):
        whole, contrast = _ssim_at_one_scale(x, y)
        wholes.append(whole)
        contrasts.append(contrast)
        if scale + 1 < len(weights):
            x, y = F.avg_pool3d(x, 2), F.avg_pool3d(y, 2)
    finer = torch.stack(contrasts[:-1]) ** weights[:-1, None]
    return (finer * wholes[-1] ** weights[-1]).prod(dim=0)


def _ssim_at_one_scale(x: Tensor, y: Tensor, sigma: float = 1.5) -> tuple[Tensor, Tensor]:
    """Mean similarity and mean contrast times structure of each pair, (B,) both; windows of up to 11 voxels."""
    stack = torch.stack([x, y, x * x, y * y, x * y])  # (5, B, 1, H, W, D)
    for axis in (3, 4, 5):
        length = stack.shape[axis]
        width = min(11, length)
        window = torch.exp(
            -(torch.arange(width, dtype=stack.dtype, device=x.device) - width // 2).square() / (2 * sigma**2)
        )
        places = torch.zeros(length, length - width + 1, dtype=stack.dtype, device=x.device)
        for step, weight in enumerate(window / window.sum()):
            places.diagonal(-step)[: length - width + 1] = weight
        stack = (stack.movedim(axis, -1) @ places).movedim(-1, axis)
    mean_x, mean_y, square_x, square_y, product = stack
    variance_x, variance_y = square_x - mean_x**2, square_y - mean_y**2
    covariance = product - mean_x * mean_y
    contrast = (2 * covariance + 9e-4) / (variance_x + variance_y + 9e-4)
    luminance = (2 * mean_x * mean_y + 1e-4) / (mean_x**2 + mean_y**2 + 1e-4)
    return (luminance * contrast).flatten(1).mean(1), contrast.flatten(1).mean(1)
