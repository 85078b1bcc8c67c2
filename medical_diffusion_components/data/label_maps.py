"""Tells a label map from an image: whole numbers, few of them, in connected regions."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import numpy as np

from medical_diffusion_components.transforms.load_volume import LoadVolume
from medical_diffusion_components.transforms.volume_error import VolumeError

__all__ = ["is_label_file", "looks_like_labels"]

_MOST_LABELS = 256
_EQUAL_NEIGHBOURS = 0.8  # share of neighbouring voxels, both inside some label, that have one label
_NAMED_LIKE_LABELS = re.compile(
    r"(?:^|[^a-z])(seg|dseg|aseg|aparc|segmentations?|labels?|labelmap|masks?|roi|rois|gt|annotations?|lesions?)(?:[^a-z]|$)"
)


def looks_like_labels(volume: np.ndarray) -> bool:
    """Whether a volume is a label map by its voxels: (H, W, D) or with a channel in front."""
    values = volume.reshape(volume.shape[-3:])
    sample = values[::4, ::4, ::4]
    # nearly all images end here, before anything is done with all of their voxels
    if not np.array_equal(sample, np.round(sample)) or len(np.unique(sample)) > _MOST_LABELS:
        return False
    if not np.array_equal(values, np.round(values)) or len(np.unique(values)) > _MOST_LABELS:
        return False
    equal = both = 0
    for axis in range(3):
        first, second = np.moveaxis(values, axis, 0)[:-1], np.moveaxis(values, axis, 0)[1:]
        inside = (first != 0) & (second != 0)
        both += int(inside.sum())
        equal += int((inside & (first == second)).sum())
    return both > 0 and equal >= _EQUAL_NEIGHBOURS * both


def is_label_file(path: Path) -> bool:
    """Whether a file is named like a label map and is one: few whole numbers, or nothing but zeros."""
    return _is_label_file(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=4096)
def _is_label_file(path: Path, _: int) -> bool:
    name = path.name.lower()
    if name.endswith((".seg.nrrd", ".seg.nhdr")):
        return True
    if not _NAMED_LIKE_LABELS.search(name) or not name.endswith((".nii", ".nii.gz")):
        return False
    try:
        voxels = LoadVolume()(path).numpy()
    except VolumeError:
        return False  # its case will say why it cannot be read
    return not voxels.any() or looks_like_labels(voxels)
