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

from medical_diffusion_components.losses.ms_ssim import WEIGHTS, MSSSIMLoss, compare, gaussian_window

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
    weights = torch.tensor(WEIGHTS, device=x.device)
    pair = torch.stack([x.float(), y.float()])
    found = [compare(pair, _published_window, 1e-4, 9e-4)]
    for _ in weights[1:]:
        pair = F.avg_pool3d(pair.flatten(0, 1), 2).unflatten(0, (2, -1))
        found.append(compare(pair, _published_window, 1e-4, 9e-4))
    finer = torch.stack([scale.contrast_structure[:, 0] for scale in found[:-1]]) ** weights[:-1, None]
    return (finer * found[-1].whole[:, 0] ** weights[-1]).prod(dim=0)


def _published_window(length: int) -> Tensor:
    width = min(11, length)
    return gaussian_window(width, sigma=1.5, middle=width // 2)
