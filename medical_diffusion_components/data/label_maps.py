"""Recognises a label map among images: whole numbers, few of them, in connected regions; or hardly any numbers at all."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import numpy as np

from medical_diffusion_components.transforms.load_volume import LoadVolume
from medical_diffusion_components.transforms.volume_error import VolumeError

__all__ = ["is_label_file", "looks_like_labels"]

_MOST_LABELS = 256
_FEWEST_LEVELS = 8  # no image has fewer intensities
_MOST_PARCELS = 4096  # labels of a fine parcellation
_GLANCE = 4096  # voxels that show whether there are hardly any intensities
_MIDDLE = 32  # voxels to each side of the centre
_EQUAL_NEIGHBOURS = 0.8  # share of neighbouring voxels, both inside some label, that have one label
_NAMED_LIKE_PROBABILITIES = re.compile(
    r"(?:^|[^a-z])(prob|probs|probseg|probmap|probabilit(?:y|ies)|softmax|pve|tpm)(?:[^a-z]|$)"
)
_NAMED_LIKE_LABELS = re.compile(
    r"(?:^|[^a-z])(seg|dseg|aseg|aparc|segmentations?|labels?|labelmap|masks?|roi|rois|gt|annotations?|lesions?)(?:[^a-z]|$)"
)


def looks_like_labels(volume: np.ndarray) -> bool:
    """Whether a volume is a label map by its voxels: (H, W, D) or with a channel in front."""
    values: np.ndarray = volume.reshape(volume.shape[-3:])
    sample = values[::4, ::4, ::4]
    # nearly all images end here, before anything is done with all of their voxels
    few = np.unique(sample.ravel()[:: 1 + sample.size // _GLANCE])
    if len(few) > _FEWEST_LEVELS and not np.array_equal(sample, np.round(sample)):
        return False
    levels, counts = np.unique(sample, return_counts=True)
    if len(levels) > _MOST_LABELS:
        commonest = float(levels[counts.argmax()])  # perhaps the air of a picture that was cut off below
        middle = tuple(slice(max(0, n // 2 - _MIDDLE), n // 2 + _MIDDLE) for n in values.shape)
        return len(levels) <= _MOST_PARCELS and _in_regions(values[middle], [0.0, commonest])
    levels = np.unique(values)
    if len(levels) <= _FEWEST_LEVELS:
        return True
    return len(levels) <= _MOST_LABELS and np.array_equal(levels, np.round(levels)) and _in_regions(values, [0.0])


def _in_regions(values: np.ndarray, background: list[float]) -> bool:
    """Whether most neighbours, both outside the background, are equal."""
    equal = both = 0
    outside = ~np.isin(values, background)
    for axis in range(3):
        first, second = np.moveaxis(values, axis, 0)[:-1], np.moveaxis(values, axis, 0)[1:]
        known = np.moveaxis(outside, axis, 0)
        inside = known[:-1] & known[1:]
        both += int(inside.sum())
        equal += int((inside & (first == second)).sum())
    return both > 0 and equal >= _EQUAL_NEIGHBOURS * both


def is_label_file(path: Path) -> bool:
    """Whether a file is named like a label map and is one: few whole numbers, or nothing but zeros.

    So is one that is named like probabilities and holds none below 0 or above 1.
    """
    return _is_label_file(path.absolute(), path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=4096)
def _is_label_file(path: Path, _: int) -> bool:
    name = path.name.lower()
    if name.endswith((".seg.nrrd", ".seg.nhdr")):
        return True
    probabilities = _NAMED_LIKE_PROBABILITIES.search(name) is not None
    if not (probabilities or _NAMED_LIKE_LABELS.search(name)) or not name.endswith((".nii", ".nii.gz")):
        return False
    try:
        voxels = LoadVolume()(path).numpy()
    except VolumeError:
        return False  # its case will say why it cannot be read
    if probabilities and voxels.min() >= 0 and voxels.max() <= 1:
        return True
    return not voxels.any() or looks_like_labels(voxels)
