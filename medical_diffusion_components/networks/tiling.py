"""The first stage in tiles, for volumes whose activations do not fit into memory at once.

Group norms look at the whole volume, so tiles that are computed one by one and blended cannot equal the whole. Here they
do: the statistics of each norm are summed over all tiles before any tile goes past it, and each tile is computed with as
much of its surroundings as its result depends on. Nothing is blended, and there are no seams. The price is time: the
network runs once for each of its norms up to there, about three times the arithmetic of one pass, and more for small tiles.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Normalise", "Tile", "in_tiles", "tiles_of"]

Normalise = Callable[[nn.GroupNorm, Tensor], Tensor]


class Tile(NamedTuple):
    """A block of cells on each axis (start, stop), and the larger block from which it is computed."""

    inner: tuple[tuple[int, int], ...]
    outer: tuple[tuple[int, int], ...]

    def read(self, x: Tensor, scale: Sequence[int]) -> Tensor:
        """The outer block of ``x`` (B, C, H, W, D), which has ``scale`` voxels per cell."""
        h, w, d = (slice(a * s, b * s) for (a, b), s in zip(self.outer, scale))
        return x[:, :, h, w, d]

    def without_surroundings(self, x: Tensor) -> Tensor:
        """The inner block of ``x`` (B, C, H', W', D'), activations of the outer block at any resolution."""
        slices = []
        for (a, b), (low, high), size in zip(self.inner, self.outer, x.shape[2:]):
            scale = size // (high - low)
            slices.append(slice((a - low) * scale, (b - low) * scale))
        h, w, d = slices
        return x[:, :, h, w, d]

    def write(self, x: Tensor, out: Tensor, scale: Sequence[int]) -> None:
        """Put the inner block's result ``x`` into ``out``, which has ``scale`` voxels per cell."""
        h, w, d = (slice(a * s, b * s) for (a, b), s in zip(self.inner, scale))
        out[:, :, h, w, d] = x


def tiles_of(cells: Sequence[int], tile: Sequence[int], surroundings: Sequence[int]) -> Iterator[Tile]:
    """Blocks of at most ``tile`` cells that cover ``cells`` (h, w, d), with ``surroundings`` as far as there are any."""
    axes = []
    for size, length, around in zip(cells, tile, surroundings):
        starts = range(0, size, length)
        axes.append(
            [((a, min(a + length, size)), (max(a - around, 0), min(a + length + around, size))) for a in starts]
        )
    for blocks in itertools.product(*axes):
        yield Tile(tuple(inner for inner, _ in blocks), tuple(outer for _, outer in blocks))


class _Measured(Exception):
    """Ends a tile's pass at the norm that is being measured."""


class _Moments:
    """Sums of one norm's input over the tiles, in float64: of the values and of their squares, per volume and group."""

    def __init__(self) -> None:
        self.norm: nn.GroupNorm | None = None
        self.count = 0
        self.total: Tensor | float = 0.0
        self.squares: Tensor | float = 0.0

    def add(self, norm: nn.GroupNorm, x: Tensor) -> None:
        self.norm = norm
        rows = x.reshape(x.shape[0], norm.num_groups, -1).double()
        self.count += rows.shape[2]
        self.total = self.total + rows.sum(2)
        self.squares = self.squares + rows.square().sum(2)

    def slope_and_intercept(self) -> tuple[Tensor, Tensor]:
        """What the norm does to each channel: twice (B, C, 1, 1, 1)."""
        norm = self.norm
        assert norm is not None, "no tile came to this norm"
        mean = torch.as_tensor(self.total) / self.count
        variance = (torch.as_tensor(self.squares) / self.count - mean.square()).clamp(min=0.0)
        per_channel = norm.num_channels // norm.num_groups
        rstd = (variance + norm.eps).rsqrt().repeat_interleave(per_channel, dim=1)
        slope = rstd * norm.weight.double()
        intercept = norm.bias.double() - mean.repeat_interleave(per_channel, dim=1) * slope
        return slope.float()[..., None, None, None], intercept.float()[..., None, None, None]


class _Norms:
    """Stands for the norms of one pass over one tile: applies those that are known, and measures the next."""

    def __init__(self, known: Sequence[tuple[Tensor, Tensor]], next_one: _Moments, tile: Tile) -> None:
        self.known = iter(known)
        self.next_one = next_one
        self.tile = tile

    def __call__(self, norm: nn.GroupNorm, x: Tensor) -> Tensor:
        affine = next(self.known, None)
        if affine is None:
            self.next_one.add(norm, self.tile.without_surroundings(x))
            raise _Measured
        slope, intercept = affine
        return F.silu(torch.addcmul(intercept, x.float(), slope)).to(x.dtype)


def in_tiles(
    run: Callable[[Tensor, Normalise], Tensor],
    x: Tensor,
    out: Tensor,
    tiles: Sequence[Tile],
    read_scale: Sequence[int],
    write_scale: Sequence[int],
) -> Tensor:
    """``run`` on ``x``, tile by tile, into ``out``; equal to one pass over all of ``x`` up to rounding.

    Args:
        run: the network as a function of its input and of what to call in place of each (group norm, SiLU).
        x: the whole input (B, C, H, W, D).
        out: the whole output; written to.
        tiles: blocks of cells that cover the volume.
        read_scale: voxels of ``x`` per cell (H, W, D).
        write_scale: voxels of ``out`` per cell.

    Returns:
        ``out``.
    """
    known: list[tuple[Tensor, Tensor]] = []
    complete = False
    while not complete:
        moments = _Moments()
        for tile in tiles:
            try:
                y = run(tile.read(x, read_scale), _Norms(known, moments, tile))
            except _Measured:
                continue
            complete = True  # every norm is known
            tile.write(tile.without_surroundings(y), out, write_scale)
        if not complete:
            known.append(moments.slope_and_intercept())
    return out
