"""Cohorts of invented subjects on disk: written whole or not at all, recognised when they are there.

A cohort is a prepared folder, ``images/<case>.nii.gz``, ``labels/<case>.nii.gz`` and MONAI's ``dataset.json``,
that says in the latter from which parameters it was made.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from tqdm import tqdm

from medical_diffusion_components.data.splits import SPLITS, split_patients
from medical_diffusion_components.files import unfinished_folder, write_json
from medical_diffusion_components.threads import one_thread

__all__ = ["checked_size", "save_case", "split_entries", "with_conditions", "write_cohort", "write_subjects"]

KINDS = ("images", "labels")
MOST_AT_ONCE = 8  # subjects in memory


def write_cohort(
    folder: str | os.PathLike,
    name: str,
    parameters: Mapping[str, Any],
    cases: Sequence[str],
    fill: Callable[[Path], Mapping[str, Any]],
) -> Path:
    """Have ``fill`` write a cohort, unless the finished cohort of the same parameters is there.

    What is written lies under another name until it is complete, so an interrupted call leaves no half cohort
    and two processes may call at once.

    Args:
        folder: where the cohort goes; missing parents are made.
        name: of the kind of cohort, such as ``"template cohort"``; with ``_`` for spaces it is the key under
            which ``dataset.json`` holds the parameters.
        parameters: all that the volumes depend on, in JSON's types.
        cases: the case ids that ``fill`` writes.
        fill: writes the volumes into a folder with ``save_case`` and returns the content of ``dataset.json``.

    Returns:
        ``folder``.

    Raises:
        FileExistsError: the folder holds something else, or has lost files.
    """
    folder = Path(folder).expanduser()
    if _holds_cohort(folder, name, parameters, cases):
        return folder
    with unfinished_folder(folder) as beside:
        unfinished = beside / "new"
        for kind in KINDS:
            (unfinished / kind).mkdir(parents=True)
        datalist = {**fill(unfinished), _key(name): parameters}
        write_json(unfinished / "dataset.json", datalist)
        try:
            os.replace(unfinished, folder)
        except OSError:  # another process was first: its cohort must be this one
            if not _holds_cohort(folder, name, parameters, cases):
                raise
    return folder


def write_subjects(write: Callable[[int], None], number: int, description: str) -> None:
    """Call ``write`` with 0, 1, ... ``number`` - 1, on as many subjects at once as PyTorch may use threads.

    Args:
        write: makes and writes one subject, by its index.
        number: of subjects.
        description: in front of the progress bar.
    """
    workers = min(torch.get_num_threads(), MOST_AT_ONCE)
    # each with one thread of PyTorch's: for one subject they would wait for one another longer than they save
    with one_thread(), ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for _ in tqdm(pool.map(write, range(number)), desc=description, total=number, unit="subject"):
            pass


def save_case(
    folder: Path, case: str, image: np.ndarray, label: np.ndarray, affine: np.ndarray, description: str
) -> None:
    """Write one case's image and label.

    Args:
        folder: of the cohort.
        case: its id, the name of the files.
        image: float32 in [-1, 1].
        label: uint8.
        affine: voxels to mm in RAS, (4, 4).
        description: for the header of the files, up to 79 characters of ASCII.

    Shape: ``image`` and ``label`` are ``(H, W, D)``.
    """
    for kind, volume in zip(KINDS, (image, label)):
        nifti = nib.Nifti1Image(volume, affine)
        nifti.header.set_xyzt_units("mm")
        nifti.header["descrip"] = description.encode("ascii")
        nib.save(nifti, folder / kind / f"{case}.nii.gz")


def split_entries(patient_of: Mapping[str, str]) -> dict[str, list[dict[str, str]]]:
    """The entries of ``dataset.json`` by split, which follows from the patient's id.

    Args:
        patient_of: case id -> patient id, of at least three patients.

    Raises:
        ValueError: fewer than three patients.
    """
    splits = split_patients(patient_of.values())
    entries: dict[str, list[dict[str, str]]] = {split: [] for split in SPLITS}
    for case, patient in sorted(patient_of.items()):
        files = {kind.removesuffix("s"): f"{kind}/{case}.nii.gz" for kind in KINDS}
        entries[splits[patient]].append({**files, "case_id": case, "patient_id": patient})
    return entries


def with_conditions(
    entries: Mapping[str, Sequence[Mapping[str, Any]]], conditions: Mapping[str, Mapping[str, float | str]]
) -> dict[str, list[dict[str, Any]]]:
    """The entries of every split with the true values of their case under ``conditions``.

    Args:
        entries: as of :func:`split_entries`.
        conditions: case id -> name -> value, of every case.
    """
    return {
        split: [{**entry, "conditions": dict(conditions[entry["case_id"]])} for entry in some]
        for split, some in entries.items()
    }


def checked_size(size: Sequence[int]) -> tuple[int, int, int]:
    """Three whole numbers of at least 8 voxels, as plain integers.

    Raises:
        ValueError: something else.
    """
    sides = tuple(np.atleast_1d(size).tolist())
    if len(sides) != 3 or any(int(n) != n or n < 8 for n in sides):
        raise ValueError(f"size must be three whole numbers of at least 8 voxels (H, W, D), got {sides}")
    height, width, depth = (int(n) for n in sides)
    return height, width, depth


def _holds_cohort(folder: Path, name: str, parameters: Mapping[str, Any], cases: Sequence[str]) -> bool:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        found = json.loads((folder / "dataset.json").read_text())[_key(name)]
    except (OSError, ValueError, KeyError, TypeError):  # no cohort of ours: not there, not JSON, another dataset
        found = None
    if found != parameters:
        raise FileExistsError(
            f"{folder} should hold the {name} {parameters}, but holds "
            + (f"the {name} {found}" if found else "something else")
            + ": remove it or choose another folder"
        )
    lost = sum(not (folder / kind / f"{case}.nii.gz").is_file() for kind in KINDS for case in cases)
    if lost:
        raise FileExistsError(f"the {name} in {folder} has lost {lost} of its files: remove the folder")
    return True


def _key(name: str) -> str:
    return name.replace(" ", "_")
