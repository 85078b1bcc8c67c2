"""What the structures of a label map are like: their volumes and their parts, to clean drawn masks and to refuse some."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from monai.transforms import Compose
from scipy import ndimage

from medical_diffusion_components.transforms.check_labels import CheckLabelsd
from medical_diffusion_components.transforms.check_volume import CheckVolumed
from medical_diffusion_components.transforms.load_volume import LoadVolumed

__all__ = [
    "CleanedMask",
    "cleaned",
    "implausible",
    "label_maps",
    "load_labels",
    "structure_limits",
    "training_structures",
]

COVERED = 0.99  # share of a structure that counts when its smallest part is sought: specks beyond it do not
BEYOND = 1.25  # factor by which volumes may lie beyond those of the training
AROUND = 0.03  # share of the grid's side by which centres may


class CleanedMask(NamedTuple):
    """A label map (H, W, D) without specks, and the share of its voxels that changed."""

    labels: np.ndarray
    changed: float


def load_labels(classes: Mapping[str, int], axcodes: str, image_size: Sequence[int]) -> Compose:
    """Case -> its label map (1, H, W, D) under ``label``, held against its image, the classes and the size."""
    return Compose(
        [
            LoadVolumed(keys=["image", "label"], axcodes=axcodes),
            CheckVolumed(keys="image", spatial_size=image_size),
            CheckLabelsd(keys="label", image_key="image", classes=classes),
        ]
    )


def label_maps(
    cases: Sequence[dict], classes: Mapping[str, int], axcodes: str, image_size: Sequence[int]
) -> Iterable[np.ndarray]:
    """The label map of each case, (H, W, D) uint8, one at a time.

    Raises:
        VolumeError: a label map that does not fit its image or the classes.
    """
    load = load_labels(classes, axcodes, image_size)
    for case in cases:
        yield np.asarray(load(case)["label"][0]).astype(np.uint8)


def structure_limits(maps: Iterable[np.ndarray], classes: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """Within which limits the structures of label maps lie, the background among them.

    For each class ``voxels``, the least and the most that a map has of it, a quarter more allowed and rounded to two
    digits, so that no patient's own number is in it; ``parts``, the most parts that are connected through faces; and
    ``smallest_part``, half the voxels of the smallest part among those that make up 99 % of the class in a map.

    Args:
        maps: (H, W, D) each.
        classes: name -> value.
    """
    voxels: dict[str, list[int]] = {name: [] for name in classes}
    parts: dict[str, list[np.ndarray]] = {name: [] for name in classes}
    for labels in maps:
        for name, value in classes.items():
            sizes = np.sort(_parts(labels == value)[1])[::-1]
            voxels[name].append(int(sizes.sum()))
            parts[name].append(sizes)
    return {name: _limits(voxels[name], parts[name]) for name in classes}


def training_structures(
    pairs: Sequence[dict], classes: Mapping[str, int], flip_axes: Sequence[int] = ()
) -> dict[str, dict[str, Any]]:
    """What the label maps of a training are like, for its weights' note: their limits, and where their structures lie.

    ``centre`` of each class but the background is the range of its centre of mass along each axis, as a share of the grid's
    side. As the other limits it is a little wider than what was found, and rounded to two digits.

    Args:
        pairs: as :func:`~medical_diffusion_components.control.cache_masks` lists them, with ``mask``.
        classes: name -> value.
        flip_axes: along which the training mirrors; 0 is H.
    """
    centres: dict[str, list[np.ndarray]] = {name: [] for name, value in classes.items() if value}

    def looked_at() -> Iterable[np.ndarray]:
        for pair in pairs:
            labels = np.load(pair["mask"], allow_pickle=False)
            for name in centres:
                centres[name] += _centres(labels == classes[name])
            yield labels

    limits = structure_limits(looked_at(), classes)
    for name, found in centres.items():
        if found:
            low, high = np.min(found, 0).round(4) - AROUND, np.max(found, 0).round(4) + AROUND
            for axis in flip_axes:
                low[axis], high[axis] = min(low[axis], 1 - high[axis]), max(high[axis], 1 - low[axis])
            limits[name]["centre"] = [(np.floor(low * 100) / 100).tolist(), (np.ceil(high * 100) / 100).tolist()]
    return limits


def _centres(inside: np.ndarray) -> list[np.ndarray]:
    """The centre of mass as a share of each side, (3,); none where nothing is inside."""
    return [(np.argwhere(inside).mean(0) + 0.5) / inside.shape] if inside.any() else []


def _limits(voxels: Sequence[int], parts: Sequence[np.ndarray]) -> dict[str, Any]:
    needed = [sizes[: int((sizes.cumsum() < COVERED * sizes.sum()).sum()) + 1] for sizes in parts if len(sizes)]
    smallest = max(1, int(min((sizes[-1] for sizes in needed), default=1)) // 2)
    counts = [int((sizes >= smallest).sum()) for sizes in parts]
    low, high = min(voxels) / BEYOND, max(voxels) * BEYOND
    return {
        "voxels": [_rounded(low, math.floor), _rounded(high, math.ceil)],
        "parts": max(counts),
        "smallest_part": smallest,
    }


def _rounded(value: float, towards: Any) -> int:
    """Two digits."""
    unit = 10 ** max(len(str(int(value))) - 2, 0)
    return int(towards(value / unit) * unit)


def _parts(inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number of the part at each voxel, 0 outside, and voxels of each part."""
    numbered, count = ndimage.label(inside)
    return numbered, np.bincount(numbered.ravel(), minlength=count + 1)[1:]


def cleaned(labels: np.ndarray, limits: Mapping[str, Mapping[str, Any]], classes: Mapping[str, int]) -> CleanedMask:
    """Give every part that is smaller than its class has them the class of the nearest voxel beyond it.

    That removes islands, and holes as well, which are islands of another class.

    Args:
        labels: (H, W, D).
        limits: of :func:`structure_limits`.
        classes: name -> value.
    """
    specks = np.zeros(labels.shape, bool)
    for name, value in classes.items():
        numbered, sizes = _parts(labels == value)
        small = np.flatnonzero(sizes < limits[name]["smallest_part"]) + 1
        specks |= np.isin(numbered, small)
    if not specks.any() or specks.all():
        return CleanedMask(labels, 0.0)
    nearest = ndimage.distance_transform_edt(specks, return_distances=False, return_indices=True)
    new = labels[tuple(nearest)]
    return CleanedMask(new, float((new != labels).mean()))


def implausible(labels: np.ndarray, limits: Mapping[str, Mapping[str, Any]], classes: Mapping[str, int]) -> list[str]:
    """In what a label map lies outside the limits, in words; empty if in nothing."""
    found = []
    for name, value in classes.items():
        _, sizes = _parts(labels == value)
        (low, high), total = limits[name]["voxels"], int(sizes.sum())
        if not low <= total <= high:
            found.append(f"{name}: {'fewer' if total < low else 'more'} voxels than in training")
        if int((sizes >= limits[name]["smallest_part"]).sum()) > limits[name]["parts"]:
            found.append(f"{name}: more parts than in training")
        low, high = limits[name].get("centre", (-np.inf, np.inf))
        if any(((centre < low) | (centre > high)).any() for centre in _centres(labels == value)):
            found.append(f"{name}: its centre lies elsewhere than in training")
    return found
