"""Label maps that volumes are drawn from, a user's or synthesised: read or refused, brought to the model's grid, varied."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage

from medical_diffusion_components.chance import numpy_generator
from medical_diffusion_components.control.mask_drawing import drawn_masks, note_of_drawn
from medical_diffusion_components.data.datalists import subject_of
from medical_diffusion_components.data.datasets import SAME_SPACING, nifti_files
from medical_diffusion_components.data.splits import SPLITS
from medical_diffusion_components.orientation import centre_of_box, grid_around
from medical_diffusion_components.transforms.load_volume import LoadVolume
from medical_diffusion_components.transforms.volume_error import VolumeError, times

__all__ = [
    "AUGMENTATIONS",
    "AskedMask",
    "check_augmentations",
    "chosen_masks",
    "first_of_patient",
    "mask_files",
    "read_asked_mask",
    "varied",
]

logger = logging.getLogger(__name__)

AUGMENTATIONS = ("flip", "affine", "elastic")
GIVEN, SYNTHESISED = "given", "synthesised"  # where masks come from
DEGREES, SCALE, SHIFT_MM = 10.0, 0.1, 5.0  # of an affine variation, to either side
ELASTIC_MM, ELASTIC_KNOTS = 5.0, 5  # of an elastic one: standard deviation of the shift, and points along each axis


class AskedMask(NamedTuple):
    """A label map on a model's grid.

    ``labels`` (H, W, D) uint8; ``affine`` indices to millimetres in RAS, (4, 4); ``origin`` says where it comes from;
    ``cut_off`` is the share of what is not background that lies outside the grid.
    """

    labels: np.ndarray
    affine: np.ndarray
    origin: Mapping[str, Any]
    cut_off: float = 0.0


def chosen_masks(kind: str, masks_dir: str | os.PathLike | None, synthesised_dir: str | os.PathLike) -> list[Path]:
    """The label maps to draw from.

    Args:
        kind: ``given``, those at ``masks_dir``; ``synthesised``, those that ``masks.yaml`` drew.
        masks_dir: a label map or a folder of them.
        synthesised_dir: where synthesised ones are unless ``masks_dir`` says otherwise.

    Raises:
        ValueError: another kind, nothing was given, or a mask that is said to be synthesised has no note that says so.
        FileNotFoundError: there are no masks.
    """
    if kind == GIVEN:
        return mask_files(masks_dir)
    if kind == SYNTHESISED:
        return drawn_masks(synthesised_dir if masks_dir is None else masks_dir)
    raise ValueError(f"expected masks to be {GIVEN} or {SYNTHESISED}, got {kind!r}")


def _origin(path: str | os.PathLike) -> dict[str, Any]:
    """Of a mask, by the note beside it; of a user's mask no name and no hash."""
    note = note_of_drawn(path)
    if not note:
        return {"source": "given by user"}
    return {"source": SYNTHESISED, "mask_seed": note["seed"], "mask_weights_sha256": note["weights_sha256"]}


def mask_files(masks_dir: str | os.PathLike | None) -> list[Path]:
    """The label maps in a folder and below, those that its ``dataset.json`` lists, or the one file that was given.

    Raises:
        ValueError: nothing was given, or a ``dataset.json`` that cannot be read.
        FileNotFoundError: there is no such file or folder, or no NIfTI file in it.
    """
    if masks_dir is None:
        raise ValueError("expected label maps: give --masks_dir, a NIfTI file or a folder of them")
    path = Path(masks_dir).expanduser().absolute()
    if (path / "dataset.json").is_file():
        files = sorted(Path(file) for file in _listed(path / "dataset.json"))
    else:
        files = [path] if path.is_file() else nifti_files(path) if path.is_dir() else []
    if not files:
        raise FileNotFoundError(f"no label maps (*.nii, *.nii.gz) at {path}: check masks_dir")
    return files


def first_of_patient(paths: Sequence[Path], masks: Sequence[AskedMask]) -> list[int]:
    """For each mask the number of the first one that is of the same patient.

    Masks are of one patient if a ``dataset.json`` beside or above them says so, if their paths name one subject as BIDS
    does, or if they are the same voxel for voxel. A warning says what was found; without any of it each is of its own.
    """
    above = Path(os.path.commonpath([path.parent for path in paths])) if paths else Path()
    with_sign: dict[str, int] = {}  # what shows whose a mask is -> number of the first mask that shows it
    contents: dict[str, Path] = {}
    found: list[int] = []  # for each mask so far
    for number, (path, mask) in enumerate(zip(paths, masks)):
        content = hashlib.sha256(mask.labels.tobytes()).hexdigest()
        listed = [place for folder in path.parents[:2] if (place := folder / "dataset.json").is_file()]
        named = [patient for place in listed if (patient := _listed(place).get(str(path)))]
        signs = [content, *(named or [subject_of(path.relative_to(above).as_posix())])]
        same = {found[with_sign[sign]] for sign in signs if sign in with_sign}
        own = min(same, default=number)
        found = [own if other in same else other for other in [*found, own]]  # what joins two patients makes them one
        with_sign = {sign: number for sign in signs if sign} | with_sign
        if contents.setdefault(content, path) != path:
            logger.warning(f"{path} is the same label map as {contents[content]}")
    if len(set(found)) < len(found):
        logger.warning(f"{len(found)} masks are of {len(set(found))} patients: all pairs of a patient are in one split")
    return found


def _listed(listing: Path) -> dict[str, str]:
    """Label map -> patient, of all splits of a ``dataset.json``."""
    content = json.loads(listing.read_bytes())
    entries = [entry for split in SPLITS if split in content for entry in content[split] if "label" in entry]
    return {
        os.path.normpath(listing.parent / entry["label"]): str(entry.get("patient_id", entry["label"]))
        for entry in entries
    }


def read_asked_mask(
    path: str | os.PathLike,
    classes: Mapping[str, int],
    image_size: Sequence[int],
    spacing: Sequence[float],
    axcodes: str = "RAS",
) -> AskedMask:
    """Read a label map of any size and orientation.

    One of the model's size and about its spacing is taken voxel by voxel. Any other is sampled, by nearest neighbour, on a
    grid of the model's size and spacing around the middle of the box that holds its structures.

    Args:
        path: NIfTI file.
        classes: name -> value, those that the branch was trained with; 0 is the background.
        image_size: voxels (H, W, D) of the model.
        spacing: mm per voxel of the model.
        axcodes: where H, W and D point.

    Raises:
        VolumeError: the file cannot be read, is not one 3D volume, holds other numbers than the classes' values or
            nothing but background, or nothing of it is left on the model's grid.
    """
    loaded = LoadVolume(axcodes)(path)
    labels = _checked(path, loaded.as_tensor()[0].numpy(), classes)
    affine = np.asarray(loaded.affine, np.float64)
    own, wanted = np.linalg.norm(affine[:3, :3], axis=0), np.asarray(spacing, np.float64)
    size = tuple(int(n) for n in image_size)
    if labels.shape == size and (np.abs(own / wanted - 1) <= SAME_SPACING).all():
        return AskedMask(labels, affine, _origin(path))
    structures = np.argwhere(labels > 0)
    grid = grid_around(centre_of_box(structures, affine), size, spacing, affine)
    change = np.round(np.linalg.inv(affine) @ grid, 9)
    sampled = ndimage.affine_transform(labels, change[:3, :3], change[:3, 3], size, order=0, mode="grid-constant")
    if not sampled.any():
        raise VolumeError(f"{path}: its structures are too small for the model's voxels of {wanted.tolist()} mm")
    places = structures @ np.linalg.inv(change)[:3, :3].T + np.linalg.inv(change)[:3, 3]
    outside = float(((places < -0.5) | (places > np.array(size) - 0.5)).any(1).mean())
    if outside > 0:
        logger.warning(
            f"{path}: {outside:.1%} of its structures lie outside the model's {times(size)} voxels and are cut off"
        )
    return AskedMask(sampled, grid, _origin(path), round(outside, 4))


def _checked(path: str | os.PathLike, values: np.ndarray, classes: Mapping[str, int]) -> np.ndarray:
    """Labels (H, W, D) as uint8."""
    found = np.unique(values)
    if not np.isfinite(found).all() or (found != np.round(found)).any():
        raise VolumeError(f"{path}: expected whole numbers, labels, got values such as {found[found % 1 != 0][0]:.4g}")
    unknown = sorted({int(value) for value in found} - set(classes.values()))
    if unknown:
        known = ", ".join(f"{value} {name}" for name, value in classes.items())
        raise VolumeError(f"{path}: expected the labels that were trained ({known}), got {unknown[:10]}")
    if not values.any():
        raise VolumeError(f"{path}: expected voxels other than background; the mask is empty")
    return values.astype(np.uint8)


def check_augmentations(kinds: Sequence[str]) -> None:
    """Raise ``ValueError`` for a kind that :func:`varied` does not know."""
    unknown = [kind for kind in kinds if kind not in AUGMENTATIONS]
    if unknown:
        raise ValueError(f"expected augmentations among {', '.join(AUGMENTATIONS)}, got {unknown}")


def varied(
    labels: np.ndarray, kinds: Sequence[str], spacing: Sequence[float], seed: int, flip_axes: Sequence[int] = (0,)
) -> np.ndarray:
    """A label map flipped, turned, scaled, shifted or bent at random, by nearest neighbour; what comes in is background.

    ``flip`` mirrors along each of ``flip_axes`` in half of all cases. ``affine`` turns by up to 10 degrees about each axis,
    scales by up to 10 % along each and shifts by up to 5 mm. ``elastic`` shifts smoothly, with a standard deviation of 5 mm
    at five points along each axis and cubic splines between them.

    Args:
        labels: (H, W, D).
        kinds: any of ``AUGMENTATIONS``.
        spacing: mm per voxel.
        seed: of the random numbers.
        flip_axes: 0, 1, 2 are H, W, D; none where a class is of one side.

    Raises:
        ValueError: an unknown kind.
    """
    check_augmentations(kinds)
    rng = numpy_generator(seed)
    if "flip" in kinds:
        labels = np.flip(labels, tuple(axis for axis in flip_axes if rng.random() < 0.5))
    if not {"affine", "elastic"} & set(kinds):
        return np.ascontiguousarray(labels)
    lengths = np.asarray(spacing, np.float64).reshape(3, 1, 1, 1)
    middle = (np.array(labels.shape).reshape(3, 1, 1, 1) - 1) / 2
    places = (np.indices(labels.shape) - middle) * lengths  # mm from the middle
    if "affine" in kinds:
        matrix = _rotation(np.deg2rad(rng.uniform(-DEGREES, DEGREES, 3))) * rng.uniform(1 - SCALE, 1 + SCALE, 3)
        shift = rng.uniform(-SHIFT_MM, SHIFT_MM, 3).reshape(3, 1, 1, 1)
        places = np.einsum("ij,jhwd->ihwd", matrix, places) + shift
    if "elastic" in kinds:
        knots = rng.normal(0, ELASTIC_MM, (3, *[ELASTIC_KNOTS] * 3))
        steps = [np.linspace(0, ELASTIC_KNOTS - 1, n) for n in labels.shape]
        between = np.stack(np.meshgrid(*steps, indexing="ij"))
        places = places + np.stack([ndimage.map_coordinates(axis, between, order=3, mode="nearest") for axis in knots])
    return ndimage.map_coordinates(labels, places / lengths + middle, order=0, mode="constant", cval=0)


def _rotation(angles: np.ndarray) -> np.ndarray:
    """About the three axes in turn, (3, 3)."""
    whole = np.eye(3)
    for axis, angle in enumerate(angles):
        one, other = [n for n in range(3) if n != axis]
        turn = np.eye(3)
        turn[one, one] = turn[other, other] = np.cos(angle)
        turn[one, other], turn[other, one] = -np.sin(angle), np.sin(angle)
        whole = turn @ whole
    return whole
