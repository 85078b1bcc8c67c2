"""Where the voxels of a volume lie in the patient, and where its axes point, in nibabel's and MONAI's letters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import nibabel as nib
import numpy as np

__all__ = ["WorldAxis", "centre_of_box", "grid_around", "to_ras", "world_axes"]


class WorldAxis(NamedTuple):
    """Where a voxel axis points: ``axis`` 0 is right, 1 anterior, 2 superior; ``sign`` -1 is the other way."""

    axis: int
    sign: int


def world_axes(axcodes: str) -> tuple[WorldAxis, WorldAxis, WorldAxis]:
    """World axes that H, W and D point along.

    Args:
        axcodes: such as ``"RAS"`` (right, anterior, superior) or ``"PSR"`` (posterior, superior, right).

    Raises:
        ValueError: not one each of R or L, A or P, S or I.
    """
    ends = ("LR", "PA", "IS")
    found = [next((axis for axis, letters in enumerate(ends) if code in letters), -1) for code in axcodes]
    if sorted(found) != [0, 1, 2]:
        raise ValueError(f"axcodes must hold one each of R or L, A or P, S or I, such as RAS or PSR; got {axcodes!r}")
    first, second, third = (WorldAxis(axis, 1 if code == ends[axis][1] else -1) for axis, code in zip(found, axcodes))
    return first, second, third


def to_ras(volume: np.ndarray, axcodes: str) -> np.ndarray:
    """A view of ``volume`` whose axes point to the right, to the front and up.

    Args:
        volume: (H, W, D).
        axcodes: where its axes point.
    """
    return nib.orientations.apply_orientation(volume, np.array(world_axes(axcodes)))


def centre_of_box(indices: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Centre (3,), in mm, of the box that holds the voxels of these indices (N, 3), N at least 1."""
    return affine[:3, :3] @ ((indices.min(0) + indices.max(0)) / 2) + affine[:3, 3]


def grid_around(centre: np.ndarray, size: Sequence[int], spacing: Sequence[float], affine: np.ndarray) -> np.ndarray:
    """Affine (4, 4) of a grid around a point.

    Args:
        centre: in mm (3,).
        size: voxels (H, W, D).
        spacing: mm per voxel along H, W, D.
        affine: of a grid along whose axes the new one lies (4, 4).
    """
    grid = np.eye(4)
    grid[:3, :3] = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0) * np.asarray(spacing, np.float64)
    grid[:3, 3] = centre - grid[:3, :3] @ ((np.array(size) - 1) / 2)
    return grid
