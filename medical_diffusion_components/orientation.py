"""Where the axes of a volume point in the patient, in the letters that nibabel and MONAI use."""

from __future__ import annotations

from typing import NamedTuple

import nibabel as nib
import numpy as np

__all__ = ["WorldAxis", "to_ras", "world_axes"]


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
