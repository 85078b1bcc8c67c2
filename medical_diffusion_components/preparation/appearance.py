"""What a person sees in a raw volume and no header says: slices that are empty, repeated or cut off, and noise."""

from __future__ import annotations

import numpy as np
from monai.data import MetaTensor

__all__ = ["remarks_on_picture"]

_STRIDE = 4  # nearly all slices show in every fourth row and column what they are
_CUT = 0.5  # share of the widest slice that the last one before empty slices has, if the picture was cut off there
_THICKER = 1.01  # times the next spacing: the axis along which slices lie
_MIDDLE = 32  # voxels to each side of the centre
_UNRELATED = 0.1  # correlation of neighbours; in scans it is above one half in the plane of the slices


def remarks_on_picture(volume: MetaTensor) -> list[str]:
    """Names of what is odd about a raw volume, before anything is done with it.

    * ``empty_slices``: slices of one value lie between others, as where a conversion lost them.
    * ``cut_by_empty_slices``: the slices end in empty ones straight after a wide one, as where a download stopped; only
      along the axis of the slices, since scanners pad rows and columns to squares.
    * ``repeated_slices``: two neighbouring slices are equal in every voxel, which no scanner makes.
    * ``looks_like_noise``: neighbouring voxels have nothing to do with each other, as in a scan without a patient, or
      where bytes were read in the wrong order.

    Shape:
        (1, H, W, D)
    """
    voxels = volume.numpy()[0]
    thickest = _slice_axis(np.asarray(volume.affine))
    found = set()
    for axis in range(3):
        slices = np.moveaxis(voxels, axis, 0)
        few = slices[:, ::_STRIDE, ::_STRIDE].reshape(len(slices), -1)
        empty = _empty(slices, few)
        among = np.flatnonzero(~empty)
        if len(among) and len(among) < among[-1] - among[0] + 1:
            found.add("empty_slices")
        if axis == thickest and _is_cut(few, among):
            found.add("cut_by_empty_slices")
        equal = np.flatnonzero(~empty[1:] & (few[1:] == few[:-1]).all(axis=1))
        if any(np.array_equal(slices[k], slices[k + 1]) for k in equal):
            found.add("repeated_slices")
    if _is_noise(voxels):
        found.add("looks_like_noise")
    return sorted(found)


def _slice_axis(affine: np.ndarray) -> int | None:
    """The axis of the longest voxels; None where two are as long."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    return int(spacing.argmax()) if spacing.max() > _THICKER * np.sort(spacing)[1] else None


def _empty(slices: np.ndarray, few: np.ndarray) -> np.ndarray:
    """Which slices are of one value: (number of slices,)."""
    empty = few.min(axis=1) == few.max(axis=1)
    for number in np.flatnonzero(empty):
        empty[number] = bool((slices[number] == slices[number].flat[0]).all())
    return empty


def _is_cut(few: np.ndarray, among: np.ndarray) -> bool:
    """Whether empty slices follow, at either end, on one that is nearly as wide as the widest."""
    if not len(among):
        return False
    for last, beyond in ((among[0], among[0] - 1), (among[-1], among[-1] + 1)):
        if 0 <= beyond < len(few):
            widths = (few != few[beyond][0]).mean(axis=1)
            if widths[last] > _CUT * widths.max():
                return True
    return False


def _is_noise(voxels: np.ndarray) -> bool:
    middle = voxels[tuple(slice(max(0, n // 2 - _MIDDLE), n // 2 + _MIDDLE) for n in voxels.shape)].astype(np.float64)
    correlations = []
    for axis in range(3):
        along = np.moveaxis(middle, axis, 0)
        one, next_one = along[:-1].ravel(), along[1:].ravel()
        spread = one.std() * next_one.std() if one.size else 0.0
        if not spread > 0:  # of one value, or not a number
            return False
        correlations.append(float(np.mean((one - one.mean()) * (next_one - next_one.mean())) / spread))
    return max(correlations) < _UNRELATED
