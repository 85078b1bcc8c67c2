"""What the audit's encoder looks at: volumes reduced to about 32 voxels per side, and random views of them.

A copy need not be exact: a generator may mirror, move, bend, blur or brighten what it has learnt. The encoder is trained
to call two views of one volume the same, so the views here are what a copy may look like (Dar et al., "Unconditional
latent diffusion models memorize patient imaging data", Nature Biomedical Engineering, 2025, for the idea; the list is
longer than theirs).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["RandomViews", "reduce_volumes", "reduced_shape", "standardise"]

SIDE = 32  # voxels per side that a volume is reduced to, about
BLURS = 8  # binomial filters at most, one after the other, each of variance 1/2
FEWEST = 16  # voxels that a side keeps, so that few thick slices stay apart


def reduced_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    """Size that a volume is reduced to: 64x64x64 -> 32x32x32, 256x256x32 -> 64x64x16, 128x128x128 -> 32x32x32.

    Args:
        shape: voxels (H, W, D).
    """
    factor = math.ceil(math.prod(shape) ** (1 / 3) / SIDE - 1e-6)  # cubic roots are not exact
    h, w, d = (side // max(1, min(factor, side // FEWEST)) for side in shape)
    return h, w, d


def reduce_volumes(volumes: Tensor) -> Tensor:
    """Average voxels in blocks, (B, C, H, W, D) -> (B, C, h, w, d)."""
    return functional.adaptive_avg_pool3d(volumes, reduced_shape(volumes.shape[2:]))


def standardise(volumes: Tensor) -> Tensor:
    """Each volume with mean 0 and standard deviation 1, (B, C, h, w, d); a constant one becomes 0."""
    mean = volumes.mean(dim=(1, 2, 3, 4), keepdim=True)
    deviation = volumes.std(dim=(1, 2, 3, 4), keepdim=True)
    return (volumes - mean) / (deviation + 1e-6)


class RandomViews:
    """One random view of each volume: moved, bent, brightened, blurred and noisy, then standardised.

    Places are given as shares of half the volume's side, so that they mean the same on every grid.

    Args:
        flip_axis: spatial axis that is mirrored with probability 1/2, as the generator's training does; None for none.
        rotation: largest angle about each axis, radians.
        scale: largest relative change of size along each axis.
        shift: largest shift along each axis.
        warp: standard deviation of a displacement given on a grid of 5x5x5 points, smooth in between.
        gamma: largest magnitude of the exponent's logarithm.
        blur: probability of a blur.
        noise: largest standard deviation of the noise, as a share of the intensity range.
        blurs: binomial filters of a blur at most: 8 are about a Gaussian of 2 reduced voxels.

    Shape:
        (B, C, h, w, d) in [-1, 1] -> (B, C, h, w, d), mean 0 and standard deviation 1
    """

    def __init__(
        self,
        flip_axis: int | None = 0,
        rotation: float = 0.15,
        scale: float = 0.1,
        shift: float = 0.1,
        warp: float = 0.03,
        gamma: float = 0.4,
        blur: float = 0.3,
        noise: float = 0.05,
        blurs: int = BLURS,
    ) -> None:
        self.flip_axis = flip_axis
        self.rotation = rotation
        self.scale = scale
        self.shift = shift
        self.warp = warp
        self.gamma = gamma
        self.blur = blur
        self.noise = noise
        self.blurs = blurs

    def __call__(self, volumes: Tensor, generator: torch.Generator) -> Tensor:
        moved = self._flipped(volumes, generator)
        moved = functional.grid_sample(
            moved, self._grid(moved, generator), mode="bilinear", padding_mode="border", align_corners=False
        )
        return standardise(self._other_intensities(moved, generator))

    def _flipped(self, volumes: Tensor, generator: torch.Generator) -> Tensor:
        if self.flip_axis is None:
            return volumes
        chosen = _uniform(generator, volumes, 1) > 0  # (B, 1)
        return torch.where(chosen[:, :, None, None, None], volumes.flip(2 + self.flip_axis), volumes)

    def _grid(self, volumes: Tensor, generator: torch.Generator) -> Tensor:
        """Where each voxel is taken from, (B, h, w, d, 3)."""
        matrix = _rotations(self.rotation * _uniform(generator, volumes, 3))
        matrix = matrix * (1 + self.scale * _uniform(generator, volumes, 3))[:, None]
        shift = self.shift * _uniform(generator, volumes, 3)
        affine = torch.cat([matrix, shift[:, :, None]], dim=2)  # (B, 3, 4)
        grid = functional.affine_grid(affine, list(volumes.shape), align_corners=False)
        points = torch.randn((len(volumes), 3, 5, 5, 5), generator=generator).to(volumes)
        bent = functional.interpolate(points, size=volumes.shape[2:], mode="trilinear", align_corners=True)
        return grid + self.warp * bent.movedim(1, -1)

    def _other_intensities(self, volumes: Tensor, generator: torch.Generator) -> Tensor:
        def drawn() -> Tensor:
            return _uniform(generator, volumes, 1)[:, :, None, None, None]

        changed = ((volumes + 1) / 2).clamp(0, 1) ** torch.exp(self.gamma * drawn())
        times = torch.ceil(self.blurs * (drawn() + 1) / 2) * ((drawn() + 1) / 2 < self.blur)  # 0 without a blur
        for number in range(1, self.blurs + 1):
            chosen = (times >= number).flatten()
            changed[chosen] = _binomial(changed[chosen])
        sigma = self.noise * (drawn() + 1) / 2
        return changed + sigma * torch.randn(volumes.shape, generator=generator).to(volumes)


def _uniform(generator: torch.Generator, like: Tensor, count: int) -> Tensor:
    """Even in [-1, 1), (B, count); drawn on the CPU, so the same for every device."""
    return (2 * torch.rand((len(like), count), generator=generator) - 1).to(like)


def _rotations(angles: Tensor) -> Tensor:
    """Rotation vectors in radians (B, 3) -> matrices (B, 3, 3)."""
    x, y, z = angles.unbind(1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=1).unflatten(1, (3, 3))
    return torch.linalg.matrix_exp(cross)


def _binomial(volumes: Tensor) -> Tensor:
    """Each voxel averaged with its neighbours, weights 1, 2, 1 along each axis; edges repeated."""
    for axis in (2, 3, 4):
        first, last = volumes.narrow(axis, 0, 1), volumes.narrow(axis, volumes.shape[axis] - 1, 1)
        before = torch.cat([first, volumes.narrow(axis, 0, volumes.shape[axis] - 1)], dim=axis)
        after = torch.cat([volumes.narrow(axis, 1, volumes.shape[axis] - 1), last], dim=axis)
        volumes = (before + 2 * volumes + after) / 4
    return volumes
