"""Whose scan is whose: scans that share any sign of a patient belong to one patient.

A patient in two splits falsifies every later number, so doubt joins and never parts: scans are of one patient if they share
a PatientID, a study, a frame of reference, or a subject's name, even where another sign differs. A name with a date of
birth joins nothing, since anonymisation writes the same ones everywhere; patients that share them are remarked on.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from medical_diffusion_components.data.splits import spelling
from medical_diffusion_components.data.tables import table_lines
from medical_diffusion_components.files import folder_setting

__all__ = ["Grouping", "PatientTable", "group_patients", "read_patient_table"]

_LISTED = 5  # lines of a table that a remark names

_NO_IDS = """0 00 000 0000 1 anon anonym anonymous anonymized anonymised anonymousid none n/a na null unknown unk test
patient patientid deidentified removed xxx noid"""
# hashed as by hash_of_patient
PLACEHOLDERS = frozenset(hashlib.sha256(text.encode()).hexdigest()[:12] for text in _NO_IDS.split())
# by what patients are distinguished, the most trusted first, and what dataset.json calls it
SIGNS = {
    "table": "the table given as --patients",
    "pattern": "--patient_pattern",
    "patient": "PatientID of DICOM",
    "spelling": "PatientID of DICOM, without leading zeros",
    "subject": "the name of the subject (BIDS)",
    "study": "the study (StudyInstanceUID), since PatientID is empty",
    "space": "the frame of reference, since there is neither PatientID nor study",
    "file": "nothing: each scan is taken for a patient of its own",
}

_FOLDER = "folder"  # the sign of the subject whose folder a scan lies in: of the same kind as that in its name


class Grouping(NamedTuple):
    """Patient of each scan, in the scans' order; number of patients by what distinguished them; remarks."""

    patients: tuple[str, ...]
    decided_by: Mapping[str, int]
    remarks: tuple[str, ...]


def group_patients(signs: Sequence[Mapping[str, str]]) -> Grouping:
    """Group scans by their signs.

    Args:
        signs: of each scan: kind (a key of ``SIGNS``, ``folder``, or ``person``) -> value; ``file`` at least. With
            ``table`` or ``pattern`` the others do not count.
    """
    signs = [_decisive(own) for own in signs]
    parent = list(range(len(signs)))

    def top(scan: int) -> int:
        while parent[scan] != scan:
            parent[scan] = scan = parent[parent[scan]]
        return scan

    first: dict[tuple[str, str], int] = {}
    for scan, own in enumerate(signs):
        for kind, value in own.items():
            if kind in SIGNS or kind == _FOLDER:
                kind = "subject" if kind == _FOLDER else kind
                parent[top(scan)] = top(first.setdefault((kind, _alike(kind, value)), scan))
    groups: dict[int, list[int]] = defaultdict(list)
    for scan in range(len(signs)):
        groups[top(scan)].append(scan)
    patients, torn = [""] * len(signs), 0
    decided: Counter[str] = Counter()
    for members in groups.values():
        kind = next(kind for kind in SIGNS if any(kind in signs[scan] for scan in members))
        names = {signs[scan][kind] for scan in members if kind in signs[scan]}
        torn += kind == "patient" and len(names) > 1
        decided[SIGNS[kind]] += 1
        for scan in members:
            patients[scan] = min(names)
    return Grouping(tuple(patients), dict(decided), tuple(_remarks(signs, patients, torn)))


class PatientTable:
    """A table of files and patients, which knows which of its lines were needed.

    Args:
        path: of the table, for messages.
        lines: what a line names (a file's path inside the folder, a folder above it, or a case id) -> number of the line
            and patient.
    """

    def __init__(self, path: Path, lines: Mapping[str, tuple[int, str]]) -> None:
        self.path = path
        self.lines = dict(lines)
        self.used: set[str] = set()

    def patient_of(self, names: Sequence[str]) -> str:
        """The patient of a scan.

        Args:
            names: what the table may call it; the folders above count as well.

        Raises:
            ValueError: no line names it, or two lines do and give it to two patients.
        """
        places = [place for name in map(_composed, names) for place in (name, *map(str, PurePosixPath(name).parents))]
        found = [place for place in dict.fromkeys(places) if place in self.lines]
        if not found:
            raise ValueError(f"the table given as --patients has no line for {names[0]!r}")
        self.used.update(found)
        (first, patient), *others = (self.lines[place] for place in found)
        for number, other in others:
            if other != patient:
                raise ValueError(
                    f"{self.path}: lines {first} and {number} both name {names[0]!r}, and give it to two patients "
                    f"({patient} and {other})"
                )
        return patient

    def remarks(self) -> list[str]:
        """Lines that named no scan, and patients whose ids differ in what hands and spreadsheets change."""
        remarks = []
        if unused := [name for name in self.lines if name not in self.used]:
            listed = ", ".join(f"{name} (line {self.lines[name][0]})" for name in unused[:_LISTED])
            more = f" and {len(unused) - _LISTED} more" if len(unused) > _LISTED else ""
            remarks.append(f"{len(unused)} lines of the table given as --patients name no scan: {listed}{more}")
        spelt: dict[str, set[str]] = defaultdict(set)
        for _, patient in self.lines.values():
            spelt[_spelling(patient)].add(patient)
        if twins := [sorted(names) for names in spelt.values() if len(names) > 1]:
            remarks.append(
                f"{len(twins)} patients of the table given as --patients are written in several ways "
                f"({' and '.join(twins[0])}): each is taken for one patient. If they are several, give them ids that "
                "differ in more than case, blanks, leading zeros and .0 at the end"
            )
        return remarks


def read_patient_table(path: str | os.PathLike, root: str | os.PathLike = "") -> PatientTable:
    """A table of files and patients: two columns, comma, semicolon or tab between them, with or without the header
    ``file,patient``.

    Args:
        path: the table.
        root: a file that is named by its whole path lies below this folder.

    Raises:
        ValueError: a line without both, or a file under two patients.
    """
    path = folder_setting("patients", path)
    lines: dict[str, tuple[int, str]] = {}
    for number, cells in enumerate(table_lines(path), start=1):
        if not any(cells) or (number == 1 and [cell.lower() for cell in cells[:2]] == ["file", "patient"]):
            continue
        if len(cells) < 2 or not cells[0] or not cells[1]:
            raise ValueError(f"{path}, line {number}: expected a file and a patient, got {len(cells)} cells")
        if any(cells[2:]):
            raise ValueError(f"{path}, line {number}: expected two columns (file, patient), got {len(cells)}")
        name = _inside(cells[0], Path(root))
        if lines.setdefault(name, (number, cells[1]))[1] != cells[1]:
            raise ValueError(f"{path}, line {number}: {cells[0]} is listed under two patients")
    return PatientTable(path, lines)


def _inside(name: str, root: Path) -> str:
    """What a line of a table names, as a path inside the folder."""
    place = PurePosixPath(os.path.normpath(name.replace("\\", "/")))
    return _composed(str(place.relative_to(root) if root.is_absolute() and place.is_relative_to(root) else place))


def _composed(name: str) -> str:
    """A name whose accents are one with their letters: disks of a Mac part them, and keyboards do not."""
    return unicodedata.normalize("NFC", name)


def patient_of_pattern(pattern: str, inside: str) -> str:
    """The first group of ``pattern`` in a path.

    Raises:
        ValueError: it finds nothing, or is no regular expression.
    """
    try:
        match = re.search(pattern, inside)
    except re.error as error:
        raise ValueError(f"patient_pattern {pattern!r} is no regular expression: {error}") from error
    if match is None or not match.groups() or not match[1]:
        raise ValueError(f"patient_pattern {pattern!r} finds no patient id (its first group) in {inside!r}")
    return match[1]


def _alike(kind: str, value: str) -> str:
    """A sign as it is compared: ``sub-1`` or ``SUB-01`` beside ``sub-01`` is one subject more likely than two."""
    if kind == "subject":
        return spelling(value)
    return _spelling(value) if kind in ("table", "pattern") else value


def _spelling(patient: str) -> str:
    """As ``spelling``, and ``1.0`` is ``1``, since spreadsheets make such numbers of a column with a gap."""
    return re.sub(r"^(\d+)\.0+$", r"\1", spelling(patient))


def _decisive(own: Mapping[str, str]) -> dict[str, str]:
    for kind in ("table", "pattern"):
        if kind in own:
            return {kind: own[kind]}
    known = {kind: value for kind, value in own.items() if value}
    if len(known.keys() & SIGNS.keys()) > 1:
        known.pop("file", None)
    return known


def _remarks(signs: Sequence[Mapping[str, str]], patients: Sequence[str], torn: int) -> list[str]:
    remarks = []
    if torn:
        remarks.append(
            f"{torn} patients have several PatientIDs within one study, frame of reference or subject, or PatientIDs that "
            "differ in leading zeros alone: each is taken as one patient. If anonymisation wrote one identifier "
            "everywhere, tell patients apart with --patients or --patient_pattern"
        )
    named = [{_alike("subject", own[key]) for key in (_FOLDER, "subject") if key in own} for own in signs]
    if strays := [own for own, subjects in zip(signs, named) if len(subjects) > 1]:
        remarks.append(
            f"{len(strays)} scans are named for another subject than their folder (the first for {strays[0]['subject']}, "
            f"in the folder of {strays[0][_FOLDER]}): the two are taken for one patient. If they are two, move the file"
        )
    spelt: dict[str, set[str]] = defaultdict(set)
    for own in signs:
        spelt[_alike("subject", own.get("subject", ""))].add(own.get("subject", ""))
    if twins := [sorted(names) for names in spelt.values() if len(names) > 1]:
        remarks.append(
            f"{len(twins)} subjects differ in case or leading zeros alone ({' and '.join(twins[0])}): each is taken "
            "for one patient. If they are several, say so with --patients"
        )
    alone = sum("file" in own for own in signs)
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
    placeholders = sum(own.get("patient") in PLACEHOLDERS for own in signs)
    if placeholders and len(studies) > 1:
        remarks.append(
            f"the PatientID of {placeholders} scans reads like none (unknown, anonymous, 0): those of one such PatientID "
            "are taken for one patient. Tell patients apart with --patients or --patient_pattern"
        )
    namesakes: dict[str, set[str]] = defaultdict(set)
    for own, patient in zip(signs, patients):
        namesakes[own.get("person", "")].add(patient)
    namesakes.pop("", None)
    if shared := sum(len(same) > 1 for same in namesakes.values()):
        remarks.append(
            f"{shared} names with a date of birth stand under several PatientIDs, taken for several patients. If they are "
            "of one person each, say so with --patients"
        )
    if len(ids) == 1 and len(studies) > 1 and len(set(patients)) == 1:
        remarks.append(
            f"all {len(studies)} studies bear one PatientID and are taken for one patient. If it was left by "
            "anonymisation, tell patients apart with --patients or --patient_pattern"
        )
    return remarks
