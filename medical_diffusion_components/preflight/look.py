"""A look at a scan's voxels: three pictures, the range of intensities, and a coarse copy to compare by."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from monai.data import MetaTensor
from torch.nn import functional as F

from medical_diffusion_components.orientation import to_ras
from medical_diffusion_components.preflight.headers import on_ras_axes

__all__ = ["TILE", "Look", "likeness", "look_at", "turned", "within_budget"]

TILE = 80  # pixels a picture is wide and high
_COARSE = 12  # blocks of the copy along its longest side
_BETTER = 0.5  # times as far from correlating fully: what a turned copy has to reach
_LONGEST = 4.0  # times a picture's shorter side, so that a wrong spacing leaves something to see
_FEWEST = 5  # looks that say what is usual
_BLACK, _WHITE = 1.0, 99.5  # percentiles
_T = TypeVar("_T")


class Look(NamedTuple):
    """What was seen of a volume.

    Attributes:
        planes: the middle sagittal, coronal and axial slice, ``TILE`` x ``TILE`` bytes, up on top.
        intensities: minimum, percentiles 1, 50 and 99, maximum.
        coarse: the volume in blocks of one length in mm, in the middle of 12 x 12 x 12, standardised.
    """

    planes: tuple[np.ndarray, np.ndarray, np.ndarray]
    intensities: tuple[float, float, float, float, float]
    coarse: np.ndarray


def look_at(volume: MetaTensor, axcodes: str) -> Look:
    """Reduce a volume to what is compared and drawn.

    Args:
        volume: (1, H, W, D) with an affine in mm.
        axcodes: where its axes point.
    """
    spacing = on_ras_axes(tuple(np.linalg.norm(np.asarray(volume.affine)[:3, :3], axis=0)), axcodes)
    voxels = to_ras(np.asarray(volume.as_tensor()[0], dtype=np.float32), axcodes)
    voxels = np.nan_to_num(voxels)
    sample = voxels[:: _step(voxels.shape[0]), :: _step(voxels.shape[1]), :: _step(voxels.shape[2])]
    low, median, high = np.percentile(sample, [1, 50, 99])
    window = np.percentile(sample, [_BLACK, _WHITE])
    planes = []
    for axis in range(3):
        picture = np.take(voxels, voxels.shape[axis] // 2, axis=axis).T[::-1]  # rows go down, up is on top
        across, up = (s for a, s in enumerate(spacing) if a != axis)
        planes.append(_fit(picture, up / across, window))
    intensities = tuple(float(x) for x in (voxels.min(), low, median, high, voxels.max()))
    return Look(tuple(planes), intensities, _coarse(sample, np.array(voxels.shape) * spacing))  # type: ignore[arg-type]


def likeness(looks: Mapping[str, Look]) -> dict[str, float]:
    """Case id -> correlation of its coarse copy with the median of all."""
    median = _median(looks)
    return {} if median is None else {case: _correlation(look.coarse, median) for case, look in looks.items()}


def turned(looks: Mapping[str, Look]) -> dict[str, str]:
    """Case id -> that the volume fits the median of all better when it is turned: a head that lies on its side.

    Tried are the 23 turns by right angles that differ from none. Fewer than five looks say nothing.
    """
    median = _median(looks)
    if median is None or len(looks) < _FEWEST:
        return {}
    found = {}
    for case, look in looks.items():
        as_it_lies = _correlation(look.coarse, median)
        best = max(_correlation(copy, median) for copy in _turns(look.coarse))
        if 1 - best < _BETTER * (1 - as_it_lies):
            found[case] = f"fits the others better when turned (likeness {best:.3f}, not {as_it_lies:.3f})"
    return found


def within_budget(items: Sequence[_T], look: Callable[[_T], None], seconds: float) -> int:
    """Look at items in their order, at least at one, until the time is used up; how many were looked at."""
    started = time.monotonic()
    for number, item in enumerate(items):
        if number and time.monotonic() - started > seconds:
            return number
        look(item)
    return len(items)


def _step(length: int) -> int:
    return max(1, length // 64)


def _coarse(sample: np.ndarray, extent: np.ndarray) -> np.ndarray:
    counts = np.maximum(1, np.round(_COARSE * extent / extent.max())).astype(int)
    blocks = F.adaptive_avg_pool3d(torch.from_numpy(np.ascontiguousarray(sample))[None], tuple(counts.tolist()))[0]
    before = (_COARSE - counts) // 2
    cube = np.full((_COARSE,) * 3, float(blocks.min()))
    cube[tuple(slice(start, start + count) for start, count in zip(before, counts))] = blocks.numpy()
    return (cube - cube.mean()) / max(float(cube.std()), 1e-12)


def _turns(cube: np.ndarray) -> Iterator[np.ndarray]:
    """The cube after each turn by right angles but the one that leaves it as it is."""
    for order in itertools.permutations(range(3)):
        even = order in ((0, 1, 2), (1, 2, 0), (2, 0, 1))
        for signs in itertools.product((1, -1), repeat=3):
            is_rotation = (math.prod(signs) == 1) == even
            if is_rotation and (order, signs) != ((0, 1, 2), (1, 1, 1)):
                yield cube.transpose(order)[tuple(slice(None, None, sign) for sign in signs)]


def _median(looks: Mapping[str, Look]) -> np.ndarray | None:
    if not looks:
        return None
    median = np.median([look.coarse for look in looks.values()], axis=0)
    return median if median.std() else None


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1]) if one.std() else 0.0


def _fit(picture: np.ndarray, aspect: float, window: np.ndarray) -> np.ndarray:
    """Into the middle of a tile, with true proportions."""
    rows, columns = picture.shape[0] * aspect, float(picture.shape[1])
    longest = max(rows, columns)
    rows, columns = max(rows, longest / _LONGEST), max(columns, longest / _LONGEST)
    size = (max(1, round(TILE * rows / longest)), max(1, round(TILE * columns / longest)))
    scaled = F.interpolate(
        torch.from_numpy(np.ascontiguousarray(picture))[None, None], size=size, mode="bilinear", antialias=True
    )[0, 0].numpy()
    shown = np.clip((scaled - window[0]) / max(float(window[1] - window[0]), 1e-12), 0, 1) * 255
    tile = np.zeros((TILE, TILE), dtype=np.uint8)
    top, left = (TILE - size[0]) // 2, (TILE - size[1]) // 2
    tile[top : top + size[0], left : left + size[1]] = shown.astype(np.uint8)
    return tile
