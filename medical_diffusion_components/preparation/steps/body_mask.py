"""The body in a scan: what is brighter than air, in large pieces, without holes.

The threshold is Otsu's: "A threshold selection method from gray-level histograms", IEEE Transactions on Systems, Man,
and Cybernetics 9(1), 62-66 (1979).
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

__all__ = ["body_mask", "large_objects", "otsu_threshold"]

_BINS = 256


def otsu_threshold(values: np.ndarray) -> float:
    """The intensity that splits ``values`` into the two classes with the largest variance between them.

    Very bright voxels (the last 0.5 %) count as if they were less bright, so that they do not stretch the histogram.

    Raises:
        ValueError: all values are equal.
    """
    low, high = np.min(values), np.percentile(values, 99.5)
    if not low < high:
        high = np.max(values)
    if not low < high:
        raise ValueError(f"expected intensities that differ, got {low:g} throughout")
    counts, edges = np.histogram(np.clip(values, low, high), bins=_BINS, range=(low, high))
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1].astype(float)
    above = counts.sum() - below
    sums = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = sums[:-1] / below - (sums[-1] - sums[:-1]) / above
    between = np.nan_to_num(below * above * distance**2)
    best = np.flatnonzero(between == between.max())  # a gap in the histogram gives a plateau: its middle
    return float((edges[best[0] + 1] + edges[best[-1] + 1]) / 2)


def large_objects(mask: np.ndarray, smallest: float = 1.0) -> np.ndarray:
    """The connected objects of a mask without the small ones; voxels that share a face are connected.

    Args:
        mask: True is object.
        smallest: smallest object to keep, as a share of the largest one's size; 1 keeps only that.

    Shape: any -> the same, of bool.
    """
    labels, count = ndimage.label(mask)
    if count == 0:
        return np.zeros(mask.shape, dtype=bool)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.isin(labels, np.flatnonzero(sizes >= smallest * sizes.max()))


def body_mask(volume: np.ndarray, smallest: float = 1.0) -> np.ndarray:
    """Voxels of large objects above Otsu's threshold, with their holes filled slice by slice along each axis.

    Args:
        volume: one scan.
        smallest: smallest object to keep, as a share of the largest one's size; 1 keeps only that.

    Shape: (H, W, D) -> (H, W, D) of bool.

    Raises:
        ValueError: all voxels are equal.
    """
    smooth = ndimage.median_filter(volume, size=3)  # lone bright voxels of noise would bridge the air between objects
    bright = smooth > otsu_threshold(smooth)
    body = large_objects(bright, smallest)
    for axis in range(3):
        for index in range(body.shape[axis]):
            plane = (slice(None),) * axis + (index,)
            body[plane] = ndimage.binary_fill_holes(body[plane])
    return body
