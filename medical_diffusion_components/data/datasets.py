"""Which volumes are in which split, for prepared folders and for plain folders of NIfTI files.

A prepared folder has a ``dataset.json`` in MONAI's datalist format.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import nibabel as nib
import numpy as np
from nibabel.spatialimages import SpatialImage

from medical_diffusion_components.data.datalists import NIFTI_SUFFIXES, cases_of_datalist, subject_of, without_suffix
from medical_diffusion_components.data.label_maps import is_label_file
from medical_diffusion_components.data.splits import SPLITS, split_patients
from medical_diffusion_components.data.volume_notes import noted_scale
from medical_diffusion_components.files import file_hash, files_below, folder_setting
from medical_diffusion_components.orientation import world_axes
from medical_diffusion_components.transforms.scale_as_prepared import INTENSITY_RANGE, WINDOW
from medical_diffusion_components.weights import EMBEDDED

__all__ = [
    "USERS_DATA",
    "case_weights",
    "check_spacing",
    "data_fingerprint",
    "describe_data",
    "fixed_window",
    "image_files",
    "load_cases",
    "median_spacing",
    "nifti_files",
]

logger = logging.getLogger(__name__)

_OTHER_FORMATS = re.compile(r"\.(nrrd|nhdr|mha|mhd|hdr|mgz|mgh|dcm|ima)$", re.IGNORECASE)
SAME_SPACING = 0.25  # share by which voxels of one data set may differ: boxes of heads of any size, resized, do
# how notes beside weights name the data, unless they are of an embedded cohort (EMBEDDED and its name)
USERS_DATA = "the user's dataset_dir"


def load_cases(dataset_dir: str | os.PathLike, split: str) -> list[dict]:
    """List the cases of one split.

    A folder with a ``dataset.json`` (MONAI's datalist, with the keys ``training``, ``validation``, ``test``)
    is taken as that file says; an entry without ``case_id`` is named after its file, and one without
    ``patient_id`` belongs to the subject that its path names, as below. Any other folder is searched for NIfTI files;
    hidden files and label maps are left out, the latter with a warning.
    Its case id is the path inside the folder with ``_`` for ``/``; its patient is the subject that the path names
    (``sub-01``, see BIDS), else each file is its own patient; and ``split_patients`` splits: to keep several volumes of a
    patient together under other names, write a ``dataset.json``.

    Args:
        dataset_dir: the folder.
        split: ``training``, ``validation`` or ``test``.

    Returns:
        Sorted by case id, dictionaries with ``image`` (absolute path), ``case_id``, ``patient_id`` and what
        else the datalist holds, such as ``label`` (absolute path). Where preparation fixed the scale, each case has
        ``intensity_range``, the values of its voxels, and ``window``, the intensities that these are.

    Raises:
        FileNotFoundError: the folder, its NIfTI files, or files that the datalist names are not there.
        NotADirectoryError: ``dataset_dir`` is a file.
        ValueError: unknown or empty split, a patient or a file in two splits, a case listed twice, a datalist that
            cannot be read, or fewer than three cases in a folder without a datalist.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}; got {split!r}")
    folder = folder_setting("dataset_dir", dataset_dir)
    if not folder.exists():
        raise FileNotFoundError(
            f"the dataset folder {folder} does not exist: check dataset_dir "
            "(it is never replaced by other data; leave it out to train on the bundle's embedded cohort)"
        )
    if not folder.is_dir():
        raise NotADirectoryError(
            f"dataset_dir must be a folder, but {folder} is a file: give the folder that holds the volumes"
        )
    folder = folder.resolve()
    if (folder / "dataset.json").is_file():
        cases = cases_of_datalist(folder / "dataset.json", split)
    else:
        cases = _cases_of_plain_folder(folder)[split]
    return sorted(cases, key=lambda case: case["case_id"])


def case_weights(cases: Sequence[dict]) -> list[float]:
    """How often each case is drawn, from the entry ``weight`` that ``dataset.json`` has for it.

    Raises:
        ValueError: a case without a weight, or one that is no number of at least 0.
    """
    for case in cases:
        weight = case.get("weight")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
            raise ValueError(
                f"expected a weight of at least 0 for case {case['case_id']} in dataset.json, got {weight!r}"
            )
    return [float(case["weight"]) for case in cases]


def data_fingerprint(cases: Sequence[dict]) -> str:
    """SHA-256 over case ids and file contents: the same data give the same text wherever they lie.

    Together with the preprocessing's own description it is the key of anything cached from these cases.

    Args:
        cases: as ``load_cases`` returns them, in any order; ``image`` and, if present, ``label`` are read. A scale that
            preparation fixed counts, too.
    """
    whole = hashlib.sha256()
    for case in sorted(cases, key=lambda case: case["case_id"]):
        for key in ("image", "label"):
            if key in case:
                whole.update(json.dumps([case["case_id"], key, file_hash(case[key])]).encode())
        if WINDOW in case:
            whole.update(json.dumps([case["case_id"], WINDOW, case[INTENSITY_RANGE], case[WINDOW]]).encode())
    return whole.hexdigest()


def median_spacing(cases: Sequence[Mapping[str, Any]], axcodes: str = "RAS") -> tuple[float, float, float]:
    """Median voxel spacing in mm of the cases' images, read from their headers alone.

    Args:
        cases: as ``load_cases`` returns them.
        axcodes: the axes, in this order, along which to give it; the files may have theirs in any order.

    Raises:
        ValueError: no cases, invalid ``axcodes``, or a file of another format.
    """
    if not cases:
        raise ValueError("the median spacing of no cases is not defined")
    spacings = []
    for case in cases:
        if not str(case["image"]).lower().endswith((*NIFTI_SUFFIXES, ".hdr")):
            raise ValueError(f"{case['image']}: expected a NIfTI file (.nii, .nii.gz); prepare reads more formats")
        affine = cast(SpatialImage, nib.load(case["image"])).affine
        order = nib.io_orientation(affine)[:, 0].astype(int)  # voxel axis -> world axis
        spacing = np.empty(3)
        spacing[order] = nib.affines.voxel_sizes(affine)
        spacings.append(spacing)
    median = np.median(spacings, axis=0)  # along right, anterior, superior
    first, second, third = (float(median[axis]) for axis, _ in world_axes(axcodes))
    return first, second, third


def check_spacing(cases: Sequence[Mapping[str, Any]], resample: bool) -> None:
    """Refuse volumes of several spacings, unless they are resampled to one.

    Without resampling a network learns in voxels. It would learn two scales, and see a third in inference, where every
    volume is resampled to the median.

    Raises:
        ValueError: two volumes of which one has voxels more than 25 % longer along an axis; the message names both.
    """
    if resample or not cases:
        return
    spacings = {str(case["image"]): median_spacing([case]) for case in cases}
    for axis in range(3):
        finest, coarsest = (choose(spacings, key=lambda file: spacings[file][axis]) for choose in (min, max))
        if spacings[coarsest][axis] > (1 + SAME_SPACING) * spacings[finest][axis]:
            named = [f"{file} {' x '.join(f'{s:.3g}' for s in spacings[file])} mm" for file in (finest, coarsest)]
            raise ValueError(
                f"expected volumes of one spacing, got {named[0]} and {named[1]} (right, anterior, superior): set "
                "--resample True, or prepare them with one --spacing"
            )


def nifti_files(folder: Path) -> list[Path]:
    """Every NIfTI file in ``folder`` and below, in the order of their paths; links are followed, hidden ones left out.

    A warning says how many images of other formats, broken links and files that cannot be read are left out.
    """
    found = files_below(folder)
    aside = {
        "images that are not NIfTI (prepare reads more formats)": filter(_OTHER_FORMATS.search, map(str, found.files)),
        "links that point nowhere": found.broken_links,
        "files or folders that cannot be read": [path for path in found.unreadable if os.path.lexists(path)],
    }
    for what, paths in ((what, list(paths)) for what, paths in aside.items()):
        if paths:
            warn_once(f"{len(paths)} {what} in {folder} are left out, the first is {paths[0]}")
    return [path for path in found.files if path.name.lower().endswith(NIFTI_SUFFIXES)]


def image_files(folder: Path) -> list[Path]:
    """Those of :func:`nifti_files` that are no label maps; a warning says how many are."""
    found = nifti_files(folder)
    if labels := [path for path in found if is_label_file(path)]:
        warn_once(f"{len(labels)} label maps in {folder} are left out, the first is {labels[0].name}")
    return sorted({*found} - {*labels})


@functools.cache
def warn_once(message: str) -> None:
    """A training lists a folder a dozen times, and its user wants to read what was left out once; ``start_run`` forgets."""
    logger.warning(message)


def _cases_of_plain_folder(folder: Path) -> dict[str, list[dict]]:
    files: dict[str, Path] = {}
    for path in image_files(folder):
        case_id = without_suffix(path.relative_to(folder).as_posix()).replace("/", "_")
        if case_id in files:
            raise ValueError(f"{path} and {files[case_id]} would both be case {case_id}: rename one of them")
        files[case_id] = path
    if not files:
        raise FileNotFoundError(
            f"no NIfTI files (*.nii, *.nii.gz) in {folder} or the folders below it: check dataset_dir, or "
            "turn the downloaded images into NIfTI with the bundle's `prepare` first"
        )
    patients = {case_id: subject_of(file.relative_to(folder).as_posix()) or case_id for case_id, file in files.items()}
    if len(set(patients.values())) < len(SPLITS):
        raise ValueError(
            f"{folder} holds {len(files)} volume(s) of {len(set(patients.values()))} subject(s): at least {len(SPLITS)} "
            "subjects are needed, one each for training, validation and test"
        )
    splits: dict[str, list[dict]] = {name: [] for name in SPLITS}
    place = split_patients(patients.values())
    for case_id, file in files.items():
        case = {"image": str(file), "case_id": case_id, "patient_id": patients[case_id], **noted_scale(file)}
        splits[place[patients[case_id]]].append(case)
    return splits


def describe_data(dataset_dir: str | None, resolved_dir: str) -> dict[str, Any]:
    """What goes into the note beside weights about the data: kind and hash, no path and no identifier.

    Args:
        dataset_dir: what the user gave, or None.
        resolved_dir: the folder in use; an embedded cohort says in its ``dataset.json`` what it is.
    """
    cases = {split: load_cases(resolved_dir, split) for split in SPLITS}
    kind, notice = USERS_DATA, None
    if dataset_dir is None:
        cohort = json.loads((Path(resolved_dir) / "dataset.json").read_text())
        kind, notice = EMBEDDED + cohort["name"], cohort["description"]
    return {
        "data": kind,
        "notice": notice,
        "data_sha256": data_fingerprint([case for split in SPLITS for case in cases[split]]),
        "training_sha256": data_fingerprint(cases["training"]),
        "cases": {split: len(cases[split]) for split in SPLITS},
        **fixed_window(cases["training"]),
    }


def fixed_window(cases: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """For notes: ``{"window": [low, high]}`` if preparation fixed what intensities mean in these cases, else empty."""
    return {WINDOW: list(cases[0][WINDOW])} if cases and WINDOW in cases[0] else {}
