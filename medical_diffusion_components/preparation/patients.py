"""Whose scan is whose: scans that share any sign of a patient belong to one patient.

A patient in two splits falsifies every later number, so doubt joins and never parts: scans are of one patient if they share
a PatientID, a study, or a subject's name, even where another sign differs.
"""

from __future__ import annotations

import csv
import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

__all__ = ["Grouping", "group_patients", "read_patient_table"]

# what tells patients apart, the most trusted first, and how dataset.json says it
SIGNS = {
    "table": "the table given as --patients",
    "pattern": "--patient_pattern",
    "patient": "PatientID of DICOM",
    "subject": "the name of the subject (BIDS)",
    "study": "the study (StudyInstanceUID), since PatientID is empty",
    "file": "nothing: each scan is taken for a patient of its own",
}


class Grouping(NamedTuple):
    """Patient of each scan, in the scans' order; number of patients by what told them apart; remarks."""

    patients: tuple[str, ...]
    decided_by: Mapping[str, int]
    remarks: tuple[str, ...]


def group_patients(signs: Sequence[Mapping[str, str]]) -> Grouping:
    """Group scans by their signs.

    Args:
        signs: of each scan: kind (a key of ``SIGNS``) -> value; ``file`` at least. With ``table`` or ``pattern`` the
            others do not count.
    """
    signs = [_decisive(own) for own in signs]
    parent = list(range(len(signs)))

    def top(scan: int) -> int:
        while parent[scan] != scan:
            parent[scan] = scan = parent[parent[scan]]
        return scan

    first: dict[tuple[str, str], int] = {}
    for scan, own in enumerate(signs):
        for sign in own.items():
            parent[top(scan)] = top(first.setdefault(sign, scan))
    groups: dict[int, list[int]] = defaultdict(list)
    for scan in range(len(signs)):
        groups[top(scan)].append(scan)
    patients, decided, torn = [""] * len(signs), Counter(), 0
    for members in groups.values():
        kind = next(kind for kind in SIGNS if any(kind in signs[scan] for scan in members))
        names = {signs[scan][kind] for scan in members if kind in signs[scan]}
        torn += kind == "patient" and len(names) > 1
        decided[SIGNS[kind]] += 1
        for scan in members:
            patients[scan] = min(names)
    return Grouping(tuple(patients), dict(decided), tuple(_remarks(signs, groups, torn)))


def read_patient_table(path: str | os.PathLike) -> dict[str, str]:
    """A table of files and patients: two columns, comma or tab between them, with or without the header ``file,patient``.

    Raises:
        ValueError: a line without both, or a file under two patients.
    """
    path = Path(path).expanduser()
    text = path.read_text(encoding="utf-8-sig")
    table: dict[str, str] = {}
    for number, row in enumerate(csv.reader(text.splitlines(), delimiter="\t" if "\t" in text else ","), start=1):
        cells = [cell.strip() for cell in row]
        if not any(cells) or (number == 1 and [cell.lower() for cell in cells[:2]] == ["file", "patient"]):
            continue
        if len(cells) < 2 or not cells[0] or not cells[1]:
            raise ValueError(f"{path}, line {number}: expected a file and a patient, got {len(cells)} cells")
        if table.setdefault(cells[0].rstrip("/"), cells[1]) != cells[1]:
            raise ValueError(f"{path}, line {number}: {cells[0]} is listed under two patients")
    return table


def patient_of_table(table: Mapping[str, str], names: Sequence[str]) -> str:
    """The patient of a scan that the table may know by its path, its folder, its file's name or its case id.

    Raises:
        ValueError: the table has none of the names.
    """
    for name in names:
        for place in (name, *(str(parent) for parent in Path(name).parents)):
            if place in table:
                return table[place]
    raise ValueError(f"the table given as --patients has no line for {names[0]!r}")


def patient_of_pattern(pattern: str, inside: str) -> str:
    """The first group of ``pattern`` in a path.

    Raises:
        ValueError: it finds nothing.
    """
    match = re.search(pattern, inside)
    if match is None or not match.groups() or not match[1]:
        raise ValueError(f"patient_pattern {pattern!r} finds no patient id (its first group) in {inside!r}")
    return match[1]


def _decisive(own: Mapping[str, str]) -> dict[str, str]:
    for kind in ("table", "pattern"):
        if kind in own:
            return {kind: own[kind]}
    known = {kind: value for kind, value in own.items() if value}
    if len(known) > 1:
        known.pop("file", None)
    return known


def _remarks(signs: Sequence[Mapping[str, str]], groups: Mapping[int, list[int]], torn: int) -> list[str]:
    remarks = []
    if torn:
        remarks.append(
            f"{torn} patients have several PatientIDs within one study or subject: each is taken as one patient"
        )
    alone = sum(set(own) == {"file"} for own in signs)
    if alone and len(signs) > 1:
        remarks.append(
            f"nothing tells whose {alone} of the scans are: each is taken for a patient of its own. If some are of one "
            "patient, say so with --patients (a table: file,patient) or --patient_pattern"
        )
    by_study = len({own["study"] for own in signs if "study" in own and "patient" not in own})
    if by_study:
        remarks.append(
            f"{by_study} studies have no PatientID: each study is taken for a patient of its own. If some are of one "
            "patient, say so with --patients"
        )
    ids = {own["patient"] for own in signs if "patient" in own}
    studies = {own["study"] for own in signs if "patient" in own and "study" in own}
    if len(ids) == 1 and len(studies) > 1 and len(groups) == 1:
        remarks.append(
            f"all {len(studies)} studies bear one PatientID and are taken for one patient. If it was left by "
            "anonymisation, tell patients apart with --patients or --patient_pattern"
        )
    return remarks
