"""Multi-scale structural similarity of volumes, as a loss.

Wang, Simoncelli and Bovik, "Multiscale structural similarity for image quality assessment", Asilomar Conference on
Signals, Systems and Computers 2003; in 3D, with scales and windows that follow from the size along each axis.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["MSSSIMLoss", "Similarity", "compare", "gaussian_window", "scale_sizes"]

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the scales, finest first; table 1 of Wang et al.
SMALLEST = 1e-4  # a similarity below it counts as it: negative ones have no root, and at 0 its slope is infinite


class Similarity(NamedTuple):
    """Means over a volume, (B, C) each."""

    whole: Tensor  # luminance x contrast x structure
    contrast_structure: Tensor


def scale_sizes(size: Sequence[int], window: int = 11, most: int = len(WEIGHTS)) -> list[tuple[int, ...]]:
    """Size of a volume at every scale, finest first.

    From one scale to the next an axis is halved, unless it would become shorter than the window; such an axis stays as
    long as it is. When no axis can be halved any more, or at ``most`` scales, that was the last. So the longest axis
    decides how many scales there are, and thick slices are not averaged away: 64x32x8 has the scales 64x32x8, 32x16x8 and
    16x16x8.

    Args:
        size: voxels (H, W, D).
        window: side of the window in voxels.
        most: largest number of scales.
    """
    sizes = [tuple(int(n) for n in size)]
    while len(sizes) < most:
        smaller = tuple(n // 2 if n // 2 >= window else n for n in sizes[-1])
        if smaller == sizes[-1]:
            break
        sizes.append(smaller)
    return sizes


class MSSSIMLoss(nn.Module):
    r"""1 - MS-SSIM, the mean over batch and channels.

    MS-SSIM = prod_{j < M} cs_j^{w_j} x ssim_M^{w_M}, where cs_j is the mean of contrast times structure at scale j, ssim_M
    the mean of the whole similarity at the coarsest. The number of scales M follows from the size (:func:`scale_sizes`),
    and the weights of Wang et al. for the M finest scales are divided by their sum. On an axis shorter than the window, the
    window is as long as the longest odd number of voxels that fit.

    Similarities below 1e-4 count as 1e-4 and give no gradient: two very different volumes have a loss near 1, never a NaN.
    Computed in float32 under any autocast.

    Args:
        data_range: largest difference of two intensities; 2 for volumes in [-1, 1].
        window: side of the Gaussian window in voxels, odd.
        sigma: standard deviation of the window in voxels.
        weights: of the scales, finest first; their number is the largest number of scales.

    Shape:
        pred, target (B, C, H, W, D) -> scalar; per volume (B,) from ``similarity``

    Raises:
        ValueError: an even or too small window, a range or sigma that is not positive, or volumes of different shapes.
    """

    def __init__(
        self, data_range: float = 2.0, window: int = 11, sigma: float = 1.5, weights: Sequence[float] = WEIGHTS
    ) -> None:
        super().__init__()
        if window < 1 or window % 2 == 0:
            raise ValueError(f"the window must be an odd number of voxels, got {window}")
        if data_range <= 0 or sigma <= 0:
            raise ValueError(f"data_range and sigma must be positive, got {data_range} and {sigma}")
        if not weights or min(weights) <= 0:
            raise ValueError(f"expected a positive weight for every scale, got {list(weights)}")
        self.window = int(window)
        self.sigma = float(sigma)
        self.weights = tuple(float(w) for w in weights)
        self.c1, self.c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """1 - the mean MS-SSIM of the batch."""
        return 1.0 - self.similarity(pred, target).mean()

    def similarity(self, pred: Tensor, target: Tensor) -> Tensor:
        """MS-SSIM of every volume, the mean over its channels, (B,)."""
        if pred.shape != target.shape or pred.ndim != 5:
            raise ValueError(
                f"expected two volumes (B, C, H, W, D) of one shape, got {tuple(pred.shape)} and {tuple(target.shape)}"
            )
        with torch.autocast(pred.device.type, enabled=False):
            pair = torch.stack([pred.float(), target.float()])  # (2, B, C, H, W, D)
            sizes = scale_sizes(pred.shape[2:], self.window, len(self.weights))
            total = sum(self.weights[: len(sizes)])
            product = torch.ones_like(pair[0, :, :, 0, 0, 0])
            for place, weight in enumerate(self.weights[: len(sizes)]):
                if place > 0:
                    pair = _halve(pair, sizes[place])
                found = compare(pair, self._window, self.c1, self.c2)
                score = found.whole if place + 1 == len(sizes) else found.contrast_structure
                product = product * score.clamp(min=SMALLEST) ** (weight / total)
            return product.mean(dim=1)

    def _window(self, length: int) -> Tensor:
        """The window along an axis of ``length`` voxels: an odd number of them, so that it has a middle."""
        return gaussian_window(min(self.window, length - 1 + length % 2), self.sigma)


def gaussian_window(width: int, sigma: float, middle: float | None = None) -> Tensor:
    """``width`` weights with a sum of 1, (width,), float64; the greatest in the middle, or at ``middle``."""
    steps = torch.arange(width, dtype=torch.float64) - ((width - 1) / 2 if middle is None else middle)
    window = torch.exp(-0.5 * (steps / sigma) ** 2)
    return window / window.sum()


def compare(pair: Tensor, window: Callable[[int], Tensor], c1: float, c2: float) -> Similarity:
    """Similarity at one scale, the mean over the places where the window fits.

    Args:
        pair: two batches of volumes (2, B, C, H, W, D).
        window: length of an axis -> the weights along it.
        c1, c2: the constants of luminance, and of contrast and structure.
    """
    x, y = pair
    maps = torch.stack([x, y, x * x, y * y, x * y])  # (5, B, C, H, W, D)
    for axis in (-3, -2, -1):
        weights = window(maps.shape[axis]).to(maps)
        places = maps.shape[axis] - len(weights) + 1
        matrix = maps.new_zeros(maps.shape[axis], places)
        for step, weight in enumerate(weights):
            matrix.diagonal(-step)[:places] = weight
        # as a product with a banded matrix: a tenth of the time of a convolution of one channel on CPUs
        maps = (maps.movedim(axis, -1) @ matrix).movedim(-1, axis)
    mean_x, mean_y, square_x, square_y, cross = maps
    both = mean_x * mean_y
    powers = mean_x * mean_x + mean_y * mean_y
    structure = (2 * (cross - both) + c2) / (square_x + square_y - powers + c2)
    whole = (2 * both + c1) / (powers + c1) * structure
    return Similarity(whole.mean(dim=(2, 3, 4)), structure.mean(dim=(2, 3, 4)))


def _halve(pair: Tensor, size: Sequence[int]) -> Tensor:
    """Mean of neighbouring voxels along the axes that are to become shorter; an odd last voxel is left out."""
    kernel = tuple(2 if wanted < have else 1 for wanted, have in zip(size, pair.shape[3:]))
    return F.avg_pool3d(pair.flatten(0, 1), kernel).unflatten(0, pair.shape[:2])
