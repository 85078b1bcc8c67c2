"""Which volumes are in which split, for prepared folders and for plain folders of NIfTI files.

A prepared folder has a ``dataset.json`` in MONAI's datalist format.
"""

from __future__ import annotations

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
from monai.data import load_decathlon_datalist
from nibabel.spatialimages import SpatialImage

from medical_diffusion_components.data.label_maps import is_label_file
from medical_diffusion_components.data.splits import SPLITS, spelling, split_patients
from medical_diffusion_components.files import file_hash, files_below, folder_setting
from medical_diffusion_components.orientation import world_axes
from medical_diffusion_components.transforms.scale_as_prepared import (
    INTENSITY_RANGE,
    WINDOW,
    dataset_scale,
    scale_facts,
)
from medical_diffusion_components.weights import EMBEDDED

__all__ = [
    "EMBEDDED",
    "NIFTI_SUFFIXES",
    "USERS_DATA",
    "case_weights",
    "check_spacing",
    "data_fingerprint",
    "describe_data",
    "fixed_window",
    "is_edited",
    "is_synthetic",
    "load_cases",
    "median_spacing",
    "nifti_files",
    "noted_scale",
    "smallest_training_split",
    "without_suffix",
]

logger = logging.getLogger(__name__)

SAME_SPACING = 0.25  # share by which voxels of one data set may differ: boxes of heads of any size, resized, do
NIFTI_SUFFIXES = (".nii.gz", ".nii")
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
        cases = _cases_of_datalist(folder / "dataset.json", split)
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
        ValueError: no cases, or invalid ``axcodes``.
    """
    if not cases:
        raise ValueError("the median spacing of no cases is not defined")
    spacings = []
    for case in cases:
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
            told = [f"{file} {' x '.join(f'{s:.3g}' for s in spacings[file])} mm" for file in (finest, coarsest)]
            raise ValueError(
                f"expected volumes of one spacing, got {told[0]} and {told[1]} (right, anterior, superior): set "
                "--resample True, or prepare them with one --spacing"
            )


def nifti_files(folder: Path) -> list[Path]:
    """Every NIfTI file in ``folder`` and below, in the order of their paths; links are followed, hidden ones left out."""
    return [path for path in files_below(folder).files if path.name.lower().endswith(NIFTI_SUFFIXES)]


def is_synthetic(volume: str | os.PathLike) -> bool:
    """Whether the note beside a volume (``x.nii.gz``, ``x.json``) names the weights that made it, from noise alone."""
    note = _note_beside(volume)
    return "weights_sha256" in note and note.get("synthetic", True) is True


def is_edited(volume: str | os.PathLike) -> bool:
    """Whether the note beside a volume says that it was edited from a real scan, whose patient it still shows."""
    return "edited_from" in _note_beside(volume)


def _note_beside(volume: str | os.PathLike) -> dict[str, Any]:
    note = Path(without_suffix(str(volume)) + ".json")
    if not note.is_file():
        return {}
    try:
        content = json.loads(note.read_text())
    except ValueError:  # some other file, such as a scanner's sidecar that is damaged
        return {}
    return content if isinstance(content, dict) else {}


def noted_scale(volume: str | os.PathLike) -> dict[str, list[float]]:
    """What the note beside a synthetic volume says of its scale, as ``scale_facts`` of a case; else empty."""
    if not is_synthetic(volume):
        return {}
    note = _note_beside(volume)
    return scale_facts(note[INTENSITY_RANGE], note[WINDOW]) if {INTENSITY_RANGE, WINDOW} <= note.keys() else {}


def _cases_of_plain_folder(folder: Path) -> dict[str, list[dict]]:
    files: dict[str, Path] = {}
    labels = []
    for path in nifti_files(folder):
        if is_label_file(path):
            labels.append(path)
            continue
        case_id = without_suffix(path.relative_to(folder).as_posix()).replace("/", "_")
        if case_id in files:
            raise ValueError(f"{path} and {files[case_id]} would both be case {case_id}: rename one of them")
        files[case_id] = path
    if labels:
        logger.warning(f"{len(labels)} label maps in {folder} are left out, the first is {labels[0].name}")
    if not files:
        raise FileNotFoundError(
            f"no NIfTI files (*.nii, *.nii.gz) in {folder} or the folders below it: check dataset_dir, or "
            "turn the downloaded images into NIfTI with the bundle's `prepare` first"
        )
    if len(files) < len(SPLITS):
        raise ValueError(
            f"{folder} holds {len(files)} volume(s): at least {len(SPLITS)} are needed, "
            "one each for training, validation and test"
        )
    patients = {case_id: _subject_of(file.relative_to(folder).as_posix()) or case_id for case_id, file in files.items()}
    if len(set(patients.values())) < len(SPLITS):
        raise ValueError(
            f"{folder} holds volumes of {len(set(patients.values()))} subject(s): at least {len(SPLITS)} are needed, one "
            "each for training, validation and test"
        )
    splits: dict[str, list[dict]] = {name: [] for name in SPLITS}
    place = split_patients(patients.values())
    for case_id, file in files.items():
        case = {"image": str(file), "case_id": case_id, "patient_id": patients[case_id], **noted_scale(file)}
        splits[place[patients[case_id]]].append(case)
    return splits


def _subject_of(path: str) -> str:
    """The subject that a path names as BIDS does, leading zeros left out, or nothing: ``sub-1`` of ``sub-01_ses-2.nii``."""
    found = re.search(r"(?:^|[/_])(sub-[A-Za-z0-9]+)", path)
    return spelling(found[1]) if found else ""


def _cases_of_datalist(path: Path, split: str) -> list[dict]:
    content = _read_datalist(path)
    scale = dataset_scale(path, content)
    listed = _listed(path, content)
    _check_disjoint(path, listed)
    if not listed[split]:
        raise ValueError(f"{path} lists no cases under {split!r}: it needs at least one each under {', '.join(SPLITS)}")
    # MONAI turns relative paths into absolute ones, but also any other text that happens to be the name of a
    # file or folder there, such as the id of a case with a folder of its own: the ids are put back.
    cases = load_decathlon_datalist(path, is_segmentation=True, data_list_key=split)
    cases = [
        {**case, "case_id": entry["case_id"], "patient_id": entry["patient_id"], **scale}
        for case, entry in zip(cases, listed[split])
    ]
    named = [case[key] for case in cases for key in ("image", "label") if key in case]
    missing = [file for file in named if not Path(file).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{path} names {len(missing)} file(s) under {split!r} that do not exist, the first is "
            f"{missing[0]}: preparation was not finished or files moved; run the bundle's `prepare` again"
        )
    return cases


def _read_datalist(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}): run the bundle's `prepare` again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object with the keys {', '.join(SPLITS)}")
    return content


def _listed(path: Path, content: Mapping[str, Any]) -> dict[str, list[dict]]:
    """Entries of every split with their case and patient ids, paths as they stand in the file."""
    listed: dict[str, list[dict]] = {}
    for name in SPLITS:
        entries = content.get(name, [])
        if not isinstance(entries, list):
            raise ValueError(f"{path}: {name!r} must be a list of cases, got {type(entries).__name__}")
        listed[name] = [_with_ids(path, name, entry) for entry in entries]
    return listed


def _with_ids(path: Path, split: str, entry: dict | str) -> dict:
    entry = {"image": entry} if isinstance(entry, str) else entry
    if not isinstance(entry, dict) or not isinstance(entry.get("image"), str):
        raise ValueError(f'{path}: every case under {split!r} needs "image": "<path>", got {entry!r}')
    case_id = str(entry.get("case_id", without_suffix(entry["image"]).strip("./").replace("/", "_")))
    return {
        **entry,
        "case_id": case_id,
        "patient_id": str(entry.get("patient_id", _subject_of(entry["image"]) or case_id)),
    }


def _check_disjoint(path: Path, listed: dict[str, list[dict]]) -> None:
    split_of: dict[str, tuple[str, str]] = {}
    cases: set[str] = set()
    files: dict[str, tuple[str, str]] = {}
    for name, entries in listed.items():
        for entry in entries:
            patient, case = entry["patient_id"], entry["case_id"]
            other, split = files.setdefault(os.path.normpath(path.parent / entry["image"]), (case, name))
            if split != name:
                raise ValueError(
                    f"{path} lists {entry['image']} as case {other} under {split!r} and as case {case} under {name!r}: a "
                    "volume must be in one split"
                )
            alike, split = split_of.setdefault(spelling(patient), (patient, name))
            if split != name:
                again = "" if alike == patient else f"patient {patient}, which is written almost the same, "
                raise ValueError(
                    f"{path} lists patient {alike} under {split!r} and {again}under {name!r}: all volumes of a patient "
                    "must be in one split"
                )
            if case in cases:
                raise ValueError(f"{path} lists case {case} twice")
            cases.add(case)


def without_suffix(name: str) -> str:
    """A NIfTI file's name without its ending."""
    for suffix in NIFTI_SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


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


def smallest_training_split(folders: Mapping[str, str | None]) -> int:
    """How many training cases the folder with the fewest has.

    Args:
        folders: name of the setting -> folder.

    Raises:
        ValueError: a setting that was not given.
    """
    given = []
    for name, folder in folders.items():
        if folder is None:
            raise ValueError(
                f"--{name} was not given: a folder of NIfTI volumes, such as inference.json of an *_ldm bundle writes"
            )
        given.append(folder)
    return min(len(load_cases(folder, "training")) for folder in given)
