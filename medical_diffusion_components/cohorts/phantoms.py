"""Cohorts of phantoms, ready for training, for trying things out where there are no images.

Every subject is drawn from solids whose sizes and places are random but plausible: see the module of each
anatomy. `phantom_downloads` writes the same subjects as raw downloads.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np

from medical_diffusion_components.cohorts.breast import (
    BREAST_LABELS,
    BREAST_LABELS_WITH_TUMOURS,
    FATTY,
    GLANDULAR,
    breast_phantom,
)
from medical_diffusion_components.cohorts.chest import AIR_HU, CHEST_LABELS, NODULE, chest_phantom
from medical_diffusion_components.cohorts.knee import KNEE_LABELS, knee_phantom
from medical_diffusion_components.cohorts.shapes import Phantom
from medical_diffusion_components.cohorts.variation import PLAIN, Variation
from medical_diffusion_components.cohorts.writing import (
    checked_size,
    save_case,
    split_entries,
    with_conditions,
    write_cohort,
    write_subjects,
)

__all__ = [
    "PHANTOM_LICENCE",
    "PHANTOM_NOTICE",
    "breast_phantom",
    "chest_phantom",
    "knee_phantom",
    "on_axes",
    "phantom_conditions",
    "ras_order",
    "write_phantom_cohort",
]

PHANTOM_NOTICE = (
    "These are not patients: every volume is a phantom, drawn by formulas from shapes of random size and place. "
    "Models made from them show that the software works and have no scientific or clinical meaning."
)
PHANTOM_LICENCE = "Drawn by formulas; no image of a person is in it, and nobody else has rights in it."
# Changing what the phantoms look like makes other volumes: count up, so that cohorts written before are not
# taken for them.
COHORT_VERSION = 1


class _Anatomy(NamedTuple):
    phantom: Callable[..., Phantom]
    labels: dict[str, str]
    axcodes: str  # where H, W, D point: the slices of the usual protocol are along D
    field_of_view: tuple[float, float, float]  # of a case, along H, W, D, mm


_ANATOMIES = {
    "knee": _Anatomy(knee_phantom, KNEE_LABELS, "PSR", (160.0, 160.0, 112.0)),
    "breast": _Anatomy(breast_phantom, BREAST_LABELS, "RAS", (170.0, 170.0, 110.0)),
    "chest": _Anatomy(chest_phantom, CHEST_LABELS, "RAS", (320.0, 320.0, 320.0)),
}
_PARTS = {"breast": ("left", "right")}
_BREAST_CENTRE = (0.0, 50.0, 0.0)  # mm: from behind the chest wall to before the nipples


def write_phantom_cohort(
    folder: str | os.PathLike,
    anatomy: str,
    num_subjects: int = 40,
    size: Sequence[int] = (64, 64, 64),
    spacing: Sequence[float] | None = None,
    seed: int = 0,
    variation: Variation = PLAIN,
) -> Path:
    """Write a cohort as ``images/<case>.nii.gz``, ``labels/<case>.nii.gz`` and MONAI's ``dataset.json``.

    The volumes look like the prepared ones of a study of that anatomy, min-max scaled to [-1, 1]:

    * ``knee``: the whole joint; H, W, D point to posterior, superior, right, so that slices are sagittal.
    * ``breast``: two cases per subject, ``..._left`` and ``..._right``, from the midline outwards. Left breasts
      are mirrored, so that all lie the same way: the midline is at the first index of H. RAS axes.
    * ``chest``: without the padding outside the scanner's field of view. RAS axes.

    Every entry of ``dataset.json`` holds the case's true values under ``conditions``, see :func:`phantom_conditions`.
    A finished cohort of the same parameters is taken as it is. What is written lies under another name until
    it is complete, so an interrupted call leaves no half cohort and two processes may call at once.

    Args:
        folder: where the cohort goes; missing parents are made.
        anatomy: ``knee``, ``breast`` or ``chest``.
        num_subjects: at least 3, one for each split.
        size: voxels (H, W, D) of a case.
        spacing: mm along H, W, D; by default so that the anatomy fills the volume.
        seed: number of the cohort, from 0.
        variation: of the subjects' appearance, and tumours; for ``breast`` alone. None by default.

    Returns:
        ``folder``.

    Raises:
        ValueError: unknown anatomy or one that cannot be varied, fewer than 3 subjects, or a bad size, spacing or seed.
        FileExistsError: the folder holds something else, or has lost files.
    """
    if anatomy not in _ANATOMIES:
        raise ValueError(f"anatomy must be one of {', '.join(_ANATOMIES)}; got {anatomy!r}")
    if variation != PLAIN and anatomy != "breast":
        raise ValueError(f"the variation of phantoms is for breasts; got {anatomy!r} with {variation._asdict()}")
    size = checked_size(size)
    if spacing is None:
        spacing = [length / n for length, n in zip(_ANATOMIES[anatomy].field_of_view, size)]
    spacing = [float(s) for s in np.atleast_1d(spacing)]
    if len(spacing) != 3 or not all(0 < s < np.inf for s in spacing) or seed < 0:
        raise ValueError(f"spacing must be three positive numbers in mm and seed at least 0, got {spacing} and {seed}")
    parameters = {
        "anatomy": anatomy,
        "num_subjects": int(num_subjects),
        "size": list(size),
        "spacing": spacing,
        "seed": int(seed),
        "version": COHORT_VERSION,
    }
    if variation != PLAIN:  # plain cohorts that were written before stay known
        parameters["variation"] = variation.checked()._asdict()
    patient_of = {case: patient for patient in _patients(parameters) for case in _cases(anatomy, patient)}
    entries = split_entries(patient_of)

    def fill(unfinished: Path) -> dict[str, Any]:
        patients = _patients(parameters)
        conditions: dict[str, dict[str, float | str]] = {}

        def write(index: int) -> None:
            for case, volume in zip(_cases(anatomy, patients[index]), _volumes(index, parameters)):
                save_case(
                    unfinished, case, _scaled(volume.image), volume.label, volume.affine, "phantom, not a patient"
                )
                conditions[case] = phantom_conditions(anatomy, volume)

        write_subjects(write, len(patients), f"{anatomy} phantoms")
        return {
            "name": f"{anatomy} phantom cohort",
            "description": PHANTOM_NOTICE,
            "licence": PHANTOM_LICENCE,
            "labels": BREAST_LABELS_WITH_TUMOURS if variation.lesions else _ANATOMIES[anatomy].labels,
            **with_conditions(entries, conditions),
        }

    return write_cohort(folder, "phantom cohort", parameters, list(patient_of), fill)


def phantom_conditions(anatomy: str, phantom: Phantom) -> dict[str, float | str]:
    """True values of a case, as it was drawn and as its label map counts them.

    * ``chest``: ``nodule``, no or yes: whether a voxel of one is in the volume.
    * ``breast``: ``glandular_fraction``, fibroglandular tissue as a share of the breast without its tumours.
    * ``knee``: ``abnormal``, ``acl`` and ``meniscus``, no or yes.
    """
    if anatomy == "chest":
        return {"nodule": _no_yes((phantom.label == NODULE).any())}
    if anatomy == "breast":
        gland, fat = (int((phantom.label == tissue).sum()) for tissue in (GLANDULAR, FATTY))
        return {"glandular_fraction": round(gland / max(gland + fat, 1), 6)}
    return {name: _no_yes(value) for name, value in phantom.findings.items()}


def on_axes(phantom: Phantom, axcodes: str) -> Phantom:
    """The same phantom with its voxel axes turned to where ``axcodes`` says, such as ``"PSR"``; the affine is true."""
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(tuple(axcodes))
    )
    image, label = (
        np.ascontiguousarray(nib.orientations.apply_orientation(volume, turn))
        for volume in (phantom.image, phantom.label)
    )
    affine = phantom.affine @ nib.orientations.inv_ornt_aff(turn, phantom.image.shape)
    return Phantom(image, affine, label, phantom.findings)


def ras_order(values: Sequence[float], axcodes: str) -> tuple[float, ...]:
    """Sizes or spacings along ``axcodes`` put in the order right, anterior, superior."""
    axes = nib.orientations.axcodes2ornt(tuple(axcodes))[:, 0].astype(int)
    return tuple(values[list(axes).index(world)] for world in range(3))


def _no_yes(value: bool | int) -> str:
    return "yes" if value else "no"


def _patients(parameters: dict[str, Any]) -> list[str]:
    return [f"{parameters['anatomy']}_{index:04d}" for index in range(parameters["num_subjects"])]


def _cases(anatomy: str, patient: str) -> list[str]:
    return [f"{patient}_{part}" for part in _PARTS[anatomy]] if anatomy in _PARTS else [patient]


def _volumes(index: int, parameters: dict[str, Any]) -> Iterator[Phantom]:
    """The volumes of a subject, in the order of its cases."""
    anatomy, seed = parameters["anatomy"], parameters["seed"]
    size, spacing = parameters["size"], parameters["spacing"]
    if anatomy == "breast":
        variation = Variation(**parameters.get("variation", {}))
        both = breast_phantom(
            index, seed, (2 * size[0], *size[1:]), spacing, centre=_BREAST_CENTRE, variation=variation
        )
        right = both.affine.copy()
        right[:3, 3] += both.affine[:3, 0] * size[0]
        yield Phantom(both.image[size[0] - 1 :: -1], right, both.label[size[0] - 1 :: -1], {})
        yield Phantom(both.image[size[0] :], right, both.label[size[0] :], {})
        return
    axcodes = _ANATOMIES[anatomy].axcodes
    phantom = _ANATOMIES[anatomy].phantom(index, seed, ras_order(size, axcodes), ras_order(spacing, axcodes))
    if anatomy == "chest":
        phantom = phantom._replace(image=np.maximum(phantom.image, AIR_HU))
    yield on_axes(phantom, axcodes)


def _scaled(image: np.ndarray) -> np.ndarray:
    low, high = image.min(), image.max()
    return 2 * (image - low) / (high - low) - 1
