"""Setting a generated region into a scan so that nothing outside changes and no edge shows.

What a decoder gives differs from the scan at the region's border, since a first stage does not reproduce a scan exactly.
The difference there is continued into the region by a membrane, as in Perez, Gangnet and Blake, "Poisson image editing",
SIGGRAPH 2003, section 3, and added to what was generated. Within a short way from the border, the result fades into the
membrane of the scan itself, which is as smooth as can be: what is drawn and what is known do not fit to the voxel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage, sparse
from scipy.sparse.linalg import cg

__all__ = ["Seam", "blended", "filled", "membrane", "seam"]


class Seam(NamedTuple):
    """Mean absolute difference of neighbouring voxels: ``across`` the mask's border, and one step ``beside`` it."""

    across: float
    beside: float


def membrane(values: np.ndarray, mask: np.ndarray, spacing: Sequence[float] = (1.0, 1.0, 1.0)) -> np.ndarray:
    """Continue what is known around a region into it.

    Solves Laplace's equation inside the mask with the known values at its border, and no slope at the volume's faces.

    Args:
        values: (X, Y, Z); what stands inside the mask has no effect.
        mask: (X, Y, Z) bool, the region; something must be known.
        spacing: mm per voxel.

    Returns:
        the solution at the mask's voxels in the order of ``values[mask]``, (N,) float64.
    """
    number = np.full(mask.shape, -1)
    number[mask] = np.arange(int(mask.sum()))
    count = int(mask.sum())
    diagonal = np.zeros(count)
    right = np.zeros(count)
    rows, columns, weights = [], [], []
    for axis in range(3):
        weight = float(spacing[axis]) ** -2
        for one, other in _pairs(axis):
            pair = mask[one]
            inner = number[one][pair]
            neighbour = number[other][pair]
            np.add.at(diagonal, inner, weight)
            known = neighbour < 0
            np.add.at(right, inner[known], weight * values[other][pair][known])
            rows.append(inner[~known])
            columns.append(neighbour[~known])
            weights.append(np.full(int((~known).sum()), -weight))
    matrix = sparse.coo_matrix(
        (np.concatenate(weights), (np.concatenate(rows), np.concatenate(columns))), (count, count)
    )
    matrix = (matrix + sparse.diags(diagonal)).tocsr()
    solution, left = cg(matrix, right, rtol=1e-6, maxiter=10 * count + 100, M=sparse.diags(1 / diagonal))
    if left:
        raise RuntimeError(f"the membrane over {count} voxels did not converge after {left} iterations")
    return solution


def filled(values: np.ndarray, mask: np.ndarray, spacing: Sequence[float] = (1.0, 1.0, 1.0)) -> np.ndarray:
    """``values`` with the masked region replaced by a membrane, so that nothing of what stood there is left."""
    result = np.array(values, np.float64)
    result[mask] = membrane(values, mask, spacing)
    return result


def blended(
    values: np.ndarray,
    generated: np.ndarray,
    mask: np.ndarray,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    length: float | None = None,
) -> np.ndarray:
    """What was generated inside the mask, so that it meets ``values`` at the border.

    Args:
        values: the scan, (X, Y, Z).
        generated: what was generated, (X, Y, Z); outside the mask only the voxels beside its border count.
        mask: (X, Y, Z) bool.
        spacing: mm per voxel.
        length: mm from the border after which the share of the scan's own membrane has fallen by e; None: no share.

    Returns:
        new intensities at the mask's voxels, (N,) float64.
    """
    shifted = generated[mask] + membrane(values - generated, mask, spacing)
    if length is None:
        return shifted
    depth = ndimage.distance_transform_edt(mask, sampling=spacing)[mask] - min(spacing) / 2
    share = np.exp(-depth / length)
    return (1 - share) * shifted + share * membrane(values, mask, spacing)


def seam(volume: np.ndarray, mask: np.ndarray) -> Seam:
    """How steep intensities are where a mask ends.

    Args:
        volume: (X, Y, Z).
        mask: (X, Y, Z) bool with a border.

    Returns:
        ``beside`` is NaN where the mask leaves no two voxels in a line.
    """
    across, beside = [], []
    volume = np.asarray(volume, np.float64)
    for axis in range(3):
        for one, other in _pairs(axis):
            face = mask[one] & ~mask[other]
            across.append(np.abs(volume[one] - volume[other])[face])
        for step in (1, -1):
            v, m = (np.moveaxis(array, axis, 0)[::step] for array in (volume, mask))
            steps = np.abs(v[2:] - v[1:-1])[m[:-2] & ~m[1:-1] & ~m[2:]]
            beside.append(steps)
    second = np.concatenate(beside)
    return Seam(float(np.concatenate(across).mean()), float(second.mean()) if len(second) else float("nan"))


def ring(mask: np.ndarray) -> np.ndarray:
    """The mask and the voxels that touch it with a face."""
    return ndimage.binary_dilation(mask)


def _pairs(axis: int) -> tuple[tuple[tuple[slice, ...], tuple[slice, ...]], ...]:
    """Slices that pair each voxel with its neighbour behind and in front along an axis."""
    low = tuple(slice(0, -1) if a == axis else slice(None) for a in range(3))
    high = tuple(slice(1, None) if a == axis else slice(None) for a in range(3))
    return (low, high), (high, low)
