"""Phantoms written as raw downloads: trees of bare arrays with tables of labels, and trees of DICOM series.

Paths, identifiers and numbers of slices come from the cases of a manifest, so that what prepares a real download
prepares these. Each tree holds a note that it is invented, and each DICOM file says so too.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from dicom_writing import stable_uid, write_series
from pydicom.dataset import Dataset

from medical_diffusion_components.cohorts.chest import LOWEST_HU
from medical_diffusion_components.cohorts.knee import FINDINGS
from medical_diffusion_components.cohorts.phantoms import (
    PHANTOM_NOTICE,
    breast_phantom,
    chest_phantom,
    knee_phantom,
    on_axes,
    ras_order,
)
from medical_diffusion_components.cohorts.shapes import Phantom
from medical_diffusion_components.data.splits import SPLITS
from medical_diffusion_components.files import write_atomically

__all__ = ["first_cases", "subject_number", "write_breast_dicom_tree", "write_chest_dicom_tree", "write_knee_npy_tree"]

NOTICE_FILE = "PHANTOMS.txt"
# where columns (to the right), rows (upwards) and slices of each plane point
PLANES = {"sagittal": "PSR", "coronal": "LSA", "axial": "LAS"}
_KNEE_EXTENT_MM = (160.0, 160.0, 112.0)  # along columns, rows, slices
_GREATEST = 255  # of the arrays' bytes


def first_cases(cases: Sequence[Mapping[str, Any]], number: int) -> list[dict[str, Any]]:
    """The first ``number`` cases by case id, such that every split has one.

    Raises:
        ValueError: fewer than three, or fewer cases than asked for.
    """
    ordered = sorted(cases, key=lambda case: case["case_id"])
    if not len(SPLITS) <= number <= len(ordered):
        raise ValueError(f"expected a number between {len(SPLITS)} and the {len(ordered)} cases, got {number}")
    chosen = [next(case for case in ordered if case["split"] == split) for split in SPLITS]
    chosen += [case for case in ordered if case not in chosen][: number - len(chosen)]
    return [dict(case) for case in sorted(chosen, key=lambda case: case["case_id"])]


def subject_number(patient_id: str) -> int:
    """Which phantom stands for a patient: a hash of the id, so that it does not depend on who else is there."""
    return int.from_bytes(hashlib.sha256(patient_id.encode()).digest()[:4], "big")


def write_knee_npy_tree(
    root: str | os.PathLike,
    cases: Sequence[Mapping[str, Any]],
    seed: int = 0,
    in_plane: int = 256,
    num_slices: int | None = None,
) -> list[dict[str, Any]]:
    """Write knees as ``<folder>/<plane>/<number>.npy`` with the tables ``<folder>-<finding>.csv``.

    An array is (slices, rows, columns) of bytes, upright as on a screen: sagittal slices face left and go to
    the right, coronal ones come towards the front, axial ones go up. A table has a line ``<number>,<0 or 1>`` per
    subject of the folder and no header.

    Args:
        root: gets the tree.
        cases: of a manifest; ``source.path`` is ``<folder>/<plane>/<number>.npy``.
        seed: number of the cohort.
        in_plane: rows and columns.
        num_slices: the same for all; by default each series has its own number, 20 to 44.

    Returns:
        The cases, as they came.
    """
    root = Path(root)
    _write_notice(root)
    findings: dict[str, dict[str, Mapping[str, int]]] = defaultdict(dict)
    for case in cases:
        folder, _, name = PurePosixPath(case["source"]["path"]).parts
        subject = subject_number(case["patient_id"])
        for index, (plane, axcodes) in enumerate(PLANES.items()):
            own = np.random.default_rng([seed, subject, index]).integers(20, 45)
            size = (in_plane, in_plane, int(own) if num_slices is None else num_slices)
            spacing = [length / n for length, n in zip(_KNEE_EXTENT_MM, size)]
            phantom = knee_phantom(subject, seed, ras_order(size, axcodes), ras_order(spacing, axcodes))
            slices = _slices(on_axes(phantom, axcodes).image)
            path = root / folder / plane / name
            write_atomically(path, lambda file, slices=slices: np.save(file, slices))
        findings[folder][Path(name).stem] = phantom.findings
    for folder, subjects in findings.items():
        for finding in FINDINGS:
            table = io.StringIO()
            csv.writer(table, lineterminator="\n").writerows([n, f[finding]] for n, f in sorted(subjects.items()))
            write_atomically(root / f"{folder}-{finding}.csv", lambda file, t=table: file.write_text(t.getvalue()))
    return [dict(case) for case in cases]


def write_breast_dicom_tree(
    root: str | os.PathLike,
    cases: Sequence[Mapping[str, Any]],
    seed: int = 0,
    size: Sequence[int] | None = None,
    dynamic: bool = True,
) -> list[dict[str, Any]]:
    """Write breast MR as ``<PatientID>/<study UID>/<series UID>/1-NNN.dcm`` with the cases' identifiers.

    Args:
        root: gets the tree.
        cases: of a manifest; each with ``source.series_uid`` and, for the fat-saturated series beside it in the
            study, ``dynamic_pre``.
        seed: number of the cohort.
        size: columns, rows and slices; by default 512, 512 and the case's ``num_images``.
        dynamic: write the fat-saturated series too.

    Returns:
        The cases with ``num_images`` as written, for the manifest of this tree.
    """
    _write_notice(Path(root))
    written = []
    for case in cases:
        case = {**case, "source": dict(case["source"])}
        series = [("source", case.get("description", ""), False)]
        if "dynamic_pre" in case and dynamic:
            case["dynamic_pre"] = dict(case["dynamic_pre"])
            series.append(("dynamic_pre", "dynamic pre", True))
        for number, (key, description, fat_saturated) in enumerate(series, start=1):
            grid = tuple(size) if size is not None else (512, 512, case[key]["num_images"])
            subject = subject_number(case["patient_id"])
            phantom = breast_phantom(subject, seed, grid, fat_saturated=fat_saturated)
            _write_dicom(
                Path(root), case, key, phantom, number, description, modality="MR", bits_stored=12, signed=False
            )
            case[key]["num_images"] = grid[2]
        written.append(case)
    return written


def write_chest_dicom_tree(
    root: str | os.PathLike,
    cases: Sequence[Mapping[str, Any]],
    seed: int = 0,
    size: Sequence[int] | None = None,
) -> list[dict[str, Any]]:
    """Write chest CT as ``<PatientID>/<study UID>/<series UID>/1-NNN.dcm`` with the cases' identifiers.

    The volume is as wide and as high as the case's ``geometry`` says, if it has one; no case has defects. Padding outside
    the field of view is stored below what a rescaled pixel can mean, and named in the header, as scanners do.

    Args:
        root: gets the tree.
        cases: of a manifest; each with ``source.series_uid``.
        seed: number of the cohort.
        size: columns, rows and slices; by default 512, 512 and the case's number of slice positions.

    Returns:
        The cases with ``num_images`` and ``geometry`` as written, for the manifest of this tree.
    """
    _write_notice(Path(root))
    written = []
    for case in cases:
        case = {key: value for key, value in case.items() if key != "defects"}
        case["source"] = dict(case["source"])
        geometry = case.get("geometry")
        real = (512, 512, geometry["num_positions"] if geometry else case["source"]["num_images"])
        grid = tuple(size) if size is not None else real
        spacing, thickness = None, None
        if geometry:
            real_spacing = [geometry[f"{key}_mm"] for key in ("pixel_spacing", "pixel_spacing", "slice_spacing")]
            shares = (grid[0] / real[0], grid[0] / real[0], grid[2] / real[2])  # pixels stay square
            spacing = [float(f"{s / share:.6g}") for s, share in zip(real_spacing, shares)]
            thickness = geometry["slice_thickness_mm"]
            case["geometry"] = {
                **geometry,
                "num_positions": grid[2],
                "slice_spacing_mm": spacing[2],
                "pixel_spacing_mm": spacing[0],
            }
        phantom = chest_phantom(subject_number(case["patient_id"]), seed, grid, spacing)
        lowest = float(phantom.image.min())
        padding = lowest if lowest < LOWEST_HU else None
        intercept = 0.0 if padding == -2000 else -1024.0
        _write_dicom(Path(root), case, "source", phantom, 1, "chest", padding, intercept=intercept, thickness=thickness)
        case["source"]["num_images"] = grid[2]
        written.append(case)
    return written


def _write_dicom(
    root: Path,
    case: Mapping[str, Any],
    key: str,
    phantom: Phantom,
    number: int,
    description: str,
    padding: float | None = None,
    **options: Any,
) -> None:
    patient, series_uid = case["patient_id"], case[key]["series_uid"]
    study_uid = case["source"].get("study_uid") or stable_uid(patient, "study")
    stored_padding = None if padding is None else int(padding - options.get("intercept", 0))
    stored = on_axes(phantom, "LPS")
    write_series(
        root / patient / study_uid / series_uid,
        stored.image,
        stored.affine,
        patient_id=patient,
        study_uid=study_uid,
        series_uid=series_uid,
        series_number=number,
        series_description=f"PHANTOM {description}".strip()[:64],
        names=[f"1-{k + 1:03d}.dcm" for k in range(stored.image.shape[2])],
        adjust=_declare(stored_padding),
        **options,
    )


def _declare(padding: int | None) -> Callable[[Dataset, int], None]:
    """What makes of a slice one of a phantom, in the words of the standard."""

    def adjust(dataset: Dataset, _: int) -> None:
        dataset.ImageComments = PHANTOM_NOTICE
        dataset.QualityControlImage = "YES"  # "a quality control or phantom image"
        dataset.PatientName = "PHANTOM"
        dataset.Manufacturer = "PHANTOM"
        if padding is not None:
            dataset.PixelPaddingValue = padding

    return adjust


def _slices(image: np.ndarray) -> np.ndarray:
    """(columns, rows upwards, slices) as bytes (slices, rows downwards, columns)."""
    scaled = np.rint(image * (_GREATEST / np.percentile(image, 99.8))).clip(0, _GREATEST)
    return np.ascontiguousarray(scaled.astype(np.uint8).transpose(2, 1, 0)[:, ::-1])


def _write_notice(root: Path) -> None:
    write_atomically(root / NOTICE_FILE, lambda file: file.write_text(PHANTOM_NOTICE + "\n"))
