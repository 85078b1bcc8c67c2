"""Splits by patient that follow from the patient's id alone."""

from __future__ import annotations

import re
from collections.abc import Iterable

from medical_diffusion_components.chance import seed_of_name

__all__ = ["SPLITS", "spelling", "split_patients"]

SPLITS = ("training", "validation", "test")


def split_patients(
    patient_ids: Iterable[str], validation: float = 0.1, test: float = 0.1, salt: str = ""
) -> dict[str, str]:
    """Assign each patient to ``training``, ``validation`` or ``test``.

    A patient's place is a hash of the id, so the same patient falls into the same split on every machine, and adding
    patients leaves the others where they were. Cohorts too small to fill every split by chance are the exception: the
    patients with the highest hashes then fill the empty ones, one each.

    Args:
        patient_ids: identifiers; repeated ones (several scans of a patient) count once.
        validation: expected share of patients in validation, in (0, 1).
        test: expected share of patients in test, in (0, 1).
        salt: mixed into the hash, to draw another split of the same patients.

    Returns:
        patient id -> name of the split (MONAI's datalist keys).

    Raises:
        ValueError: fewer than three patients, or shares that leave a split empty.
    """
    if not (0 < validation and 0 < test and validation + test < 1):
        raise ValueError(f"validation and test must be above 0, and together below 1, got {validation} and {test}")
    patients = sorted(set(patient_ids))
    if len(patients) < len(SPLITS):
        raise ValueError(f"a split by patient needs at least {len(SPLITS)} patients, got {len(patients)}")
    place = {patient: seed_of_name(f"{salt}{patient}", 8) / 2.0**64 for patient in patients}  # in [0, 1)
    by_place = sorted(patients, key=lambda patient: place[patient], reverse=True)
    num_test = max(1, sum(u >= 1 - test for u in place.values()))
    num_validation = max(1, sum(1 - test - validation <= u < 1 - test for u in place.values()))
    num_test = min(num_test, len(patients) - 2)
    num_validation = min(num_validation, len(patients) - num_test - 1)
    names = ["test"] * num_test + ["validation"] * num_validation
    names += ["training"] * (len(patients) - len(names))
    return dict(zip(by_place, names))


def spelling(patient: str) -> str:
    """An id without what hands and spreadsheets change in it: case, blanks and leading zeros."""
    return re.sub(r"(?<!\d)0+(?=\d)", "", re.sub(r"\s", "", patient).casefold())
