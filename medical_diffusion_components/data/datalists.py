"""A ``dataset.json``, MONAI's list of cases: read, or refused with the entry that is wrong."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medical_diffusion_components.data.splits import SPLITS, spelling
from medical_diffusion_components.transforms.scale_as_prepared import dataset_scale

__all__ = ["NIFTI_SUFFIXES", "cases_of_datalist", "subject_of", "without_suffix"]

NIFTI_SUFFIXES = (".nii.gz", ".nii")
_FILES = ("image", "label")  # keys of an entry that name a file


def cases_of_datalist(path: Path, split: str) -> list[dict]:
    """The cases that the file lists under ``split``; the whole file is checked. Paths are absolute.

    Raises:
        FileNotFoundError: a file that is listed is not there.
        ValueError: an invalid entry, an empty split, a patient or a file in two splits, a case or a file listed twice, a
            label of two patients, or a file that is an image here and a label there.
    """
    content = _read(path)
    scale = dataset_scale(path, content)
    listed = _listed(path, content)
    _check_disjoint(path, listed)
    _check_labels(path, listed)
    if not listed[split]:
        there = ", ".join(repr(key) for key, value in content.items() if isinstance(value, list)) or "no list"
        raise ValueError(
            f"{path} lists no cases under {split!r}: it needs at least one each under {', '.join(SPLITS)}, and has {there}"
        )
    cases = [
        {**entry, **{key: os.path.normpath(path.parent / entry[key]) for key in _FILES if key in entry}, **scale}
        for entry in listed[split]
    ]
    named = [case[key] for case in cases for key in _FILES if key in case]
    missing = [file for file in named if not Path(file).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{path} names {len(missing)} file(s) under {split!r} that do not exist, the first is "
            f"{missing[0]}: preparation was not finished or files moved; run the bundle's `prepare` again"
        )
    return cases


def subject_of(path: str) -> str:
    """The subject that a path names as BIDS does, leading zeros left out, or nothing: ``sub-1`` of ``sub-01_ses-2.nii``."""
    found = re.search(r"(?:^|[/_])(sub-[A-Za-z0-9]+)", path)
    return spelling(found[1]) if found else ""


def without_suffix(name: str) -> str:
    """A NIfTI file's name without its ending."""
    for suffix in NIFTI_SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())  # of bytes, json knows what Windows puts in front of text
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}): mend it, or run the bundle's `prepare` again") from error
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
        listed[name] = [_with_ids(f"{path}: every case under {name!r}", entry) for entry in entries]
    return listed


def _with_ids(every: str, entry: Any) -> dict:
    entry = {"image": entry} if isinstance(entry, str) else entry
    named = {"image": None, **(entry if isinstance(entry, dict) else {})}
    for key in _FILES:
        if key in named and not (isinstance(named[key], str) and named[key]):
            raise ValueError(f'{every} needs "{key}": "<path>", or no "label" at all, got {entry!r}')
    for key in ("case_id", "patient_id"):  # a table that misses one gives null or NaN, and 7 becomes 7.0 there
        if key in entry and (type(entry[key]) not in (str, int) or not str(entry[key]).strip()):
            raise ValueError(f"{every} needs {key!r} to be text or a whole number, or no {key!r} at all, got {entry!r}")
    case_id = str(entry.get("case_id", without_suffix(entry["image"]).strip("./").replace("/", "_")))
    patient_id = str(entry.get("patient_id", subject_of(entry["image"]) or case_id))
    return {**entry, "case_id": case_id, "patient_id": patient_id}


def _check_disjoint(path: Path, listed: dict[str, list[dict]]) -> None:
    split_of: dict[str, tuple[str, str]] = {}
    cases: set[str] = set()
    files: dict[str, tuple[str, dict]] = {}
    for name, entries in listed.items():
        for entry in entries:
            patient, case = entry["patient_id"], entry["case_id"]
            split, other = files.setdefault(os.path.realpath(path.parent / entry["image"]), (name, entry))
            if split != name:
                raise ValueError(
                    f"{path} lists {entry['image']} as case {other['case_id']} under {split!r} and as case {case} under "
                    f"{name!r}: a volume must be in one split"
                )
            known, split = split_of.setdefault(spelling(patient), (patient, name))
            if split != name:
                again = "" if known == patient else f"patient {patient}, which is written almost the same, "
                raise ValueError(
                    f"{path} lists patient {known} under {split!r} and {again}under {name!r}: all volumes of a patient "
                    "must be in one split"
                )
            if case in cases:
                raise ValueError(f"{path} lists case {case} twice")
            cases.add(case)
            if entry is not other and (patient != other["patient_id"] or entry.get("label") == other.get("label")):
                both = " and ".join(f"case {one['case_id']} of patient {one['patient_id']}" for one in (other, entry))
                raise ValueError(
                    f"{path} lists {entry['image']} twice, as {both}, without another label of this patient"
                )


def _check_labels(path: Path, listed: dict[str, list[dict]]) -> None:
    entries = [entry for name in SPLITS for entry in listed[name]]
    images = {os.path.realpath(path.parent / entry["image"]): entry for entry in entries}
    drawn_on: dict[str, dict] = {}
    for entry in (entry for entry in entries if "label" in entry):
        label = os.path.realpath(path.parent / entry["label"])
        other = images.get(label) or drawn_on.setdefault(label, entry)
        if label in images or other["patient_id"] != entry["patient_id"]:
            what = "image" if label in images else "label"
            both = " and of ".join(f"case {one['case_id']} (patient {one['patient_id']})" for one in (other, entry))
            raise ValueError(f"{path} lists {entry['label']} as {what} and label of {both}: it is one of them")
