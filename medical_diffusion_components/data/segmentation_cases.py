"""Cases with labels: a subset of the labelled patients, what the weights' note says of them, and volumes to segment."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medical_diffusion_components.chance import seed_of_name
from medical_diffusion_components.data.datalists import NIFTI_SUFFIXES, without_suffix
from medical_diffusion_components.data.datasets import (
    USERS_DATA,
    data_fingerprint,
    fixed_window,
    image_files,
    load_cases,
)
from medical_diffusion_components.data.volume_notes import noted_scale
from medical_diffusion_components.transforms.scale_as_prepared import INTENSITY_RANGE, WINDOW
from medical_diffusion_components.weights import EMBEDDED

__all__ = [
    "describe_cases",
    "is_served",
    "labelled_cases",
    "labelled_subset",
    "volumes_to_segment",
    "with_pairs",
]

logger = logging.getLogger(__name__)

_SEGMENTED = ("image", "case_id", INTENSITY_RANGE, WINDOW)  # what is passed on of a case
SERVED = "cases of an annotation server"


def labelled_cases(dataset_dir: str | os.PathLike, split: str) -> list[dict]:
    """The cases of a split, each with its label.

    Raises:
        ValueError: a case has no label, or what ``load_cases`` raises.
    """
    cases = load_cases(dataset_dir, split)
    without = [case["case_id"] for case in cases if "label" not in case]
    if without:
        raise ValueError(
            f"{dataset_dir}: {len(without)} of {len(cases)} {split} cases have no label, the first is {without[0]}: list "
            'every case in dataset.json as {"image": "...", "label": "...", "case_id": "...", "patient_id": "..."}'
        )
    return cases


def labelled_subset(cases: Sequence[dict], num_patients: int | None, seed: int = 0) -> list[dict]:
    """The cases of some of the patients, as if only they had labels.

    A seed fixes one order of the patients: with the same seed, two patients include the one. Adding patients to the data
    leaves the order of the others. All cases of a chosen patient are in.

    Args:
        cases: with ``patient_id``.
        num_patients: how many patients; None: all.
        seed: chooses the order.

    Raises:
        ValueError: fewer than one patient, or more than there are.
    """
    if num_patients is None:
        return list(cases)
    patients = sorted({case["patient_id"] for case in cases}, key=lambda patient: seed_of_name(f"{seed}/{patient}", 32))
    if not 1 <= num_patients <= len(patients):
        raise ValueError(
            f"num_labelled must be 1 to {len(patients)} (patients of the training split), got {num_patients}"
        )
    chosen = set(patients[:num_patients])
    return [case for case in cases if case["patient_id"] in chosen]


def with_pairs(cases: Sequence[dict], pairs_dir: str | os.PathLike | None, share: float = 0.5) -> list[dict]:
    """Cases with further pairs of volume and label, such as a generator draws from label maps.

    Args:
        cases: to train on; they are repeated so that pairs are at most about ``share`` of the list.
        pairs_dir: folder whose ``dataset.json`` lists the pairs, of which those for training are taken; None: no pairs.
        share: of the pairs in the list, in (0, 1).

    Raises:
        ValueError: a share out of range, a pair with the id of a case, or as :func:`labelled_cases`.
    """
    if pairs_dir is None:
        return list(cases)
    if not 0 < share < 1:
        raise ValueError(f"pairs_share must be in (0, 1), got {share}")
    pairs = labelled_cases(pairs_dir, "training")
    if both := {str(case["case_id"]) for case in cases} & {str(pair["case_id"]) for pair in pairs}:
        raise ValueError(f"{pairs_dir}: expected pairs with ids of their own, but {min(both)} is a case of dataset_dir")
    times = max(1, round(len(pairs) * (1 - share) / share / len(cases)))
    return [*cases] * times + pairs


def is_served(cases: Sequence[Mapping[str, Any]]) -> bool:
    """Whether cases were handed over by an annotation server, which gives an image and a label and no ``case_id``."""
    return any("case_id" not in case for case in cases)


def describe_cases(training: Sequence[dict], validation: Sequence[dict], dataset_dir: str | None) -> dict[str, Any]:
    """What the note beside weights says about the data: kind, hash and numbers, no path and no identifier.

    Args:
        training: the cases that are trained on.
        validation: those that decide which weights are best.
        dataset_dir: what the user gave, or None. Cases of an annotation server have no ``case_id`` and are known by that.

    Raises:
        ValueError: no case to train on, or none to validate with.
    """
    if not training or not validation:
        raise ValueError(
            "expected cases to train on and cases to validate with, since the weights of the best validation are kept; "
            f"got {len(training)} and {len(validation)}"
        )
    cases = [*training, *validation]
    kind, notice = USERS_DATA, None
    if is_served(cases):
        kind = SERVED
        cases = [{"case_id": f"{number}", **case} for number, case in enumerate(cases)]
    elif dataset_dir is None:
        cohort = json.loads((Path(training[0]["image"]).parents[1] / "dataset.json").read_text())
        kind, notice = EMBEDDED + cohort["name"], cohort["description"]
    return {
        "data": kind,
        "notice": notice,
        "data_sha256": data_fingerprint(cases),
        "cases": {"training": len(training), "validation": len(validation)},
        "patients": len({case.get("patient_id", case["image"]) for case in training}),
        **fixed_window(training),
    }


def volumes_to_segment(path: str | os.PathLike) -> list[dict]:
    """What ``inference.json`` runs on: one NIfTI file, the test split of a datalist, or every NIfTI file of a folder.

    Returns:
        Dictionaries with ``image`` (absolute path) and ``case_id``, in the order of their paths, and the scale that
        preparation fixed. Label maps in a folder are left out, with a warning.

    Raises:
        FileNotFoundError: no such file or folder, or no NIfTI file in it.
        ValueError: a file that is no NIfTI file.
    """
    path = Path(path).expanduser().absolute()
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder {path} to segment: check dataset_dir")
    if path.is_file():
        if not path.name.lower().endswith(NIFTI_SUFFIXES):
            raise ValueError(f"{path}: expected a NIfTI file (.nii or .nii.gz) or a folder of them")
        return [{"image": str(path), "case_id": without_suffix(path.name), **noted_scale(path)}]
    if (path / "dataset.json").is_file():
        return [{key: case[key] for key in _SEGMENTED if key in case} for case in load_cases(path, "test")]
    files = image_files(path)
    if not files:
        raise FileNotFoundError(
            f"no NIfTI files (*.nii, *.nii.gz) in {path} or the folders below it: check dataset_dir. DICOM series need "
            "--output_format dicom"
        )
    names = [without_suffix(str(file.relative_to(path))).replace("/", "_") for file in files]
    return [{"image": str(file), "case_id": name, **noted_scale(file)} for file, name in zip(files, names)]
