"""What lies in a folder of raw data: every file is part of a case, or left aside for a reason that is counted.

The steps are: list the files, say of what kind each is, join the slices of a series wherever they lie, find out whose
scan is whose. What a scan contains is not looked at here, except in files whose name suggests a label map.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from medical_diffusion_components.data.label_maps import is_label_file
from medical_diffusion_components.files import file_hash, files_below
from medical_diffusion_components.preparation.bids import (
    about_participant,
    check_participants,
    derivatives,
    entities_of,
    keep_one_per_session,
    parse_select,
    read_participants,
    remark_on_unlisted,
    remark_on_values,
    subject_of_folder,
)
from medical_diffusion_components.preparation.case_ids import case_ids, short_hash
from medical_diffusion_components.preparation.dicom_index import DAMAGED, NO_DICOM, IndexedFile, index_dicom
from medical_diffusion_components.preparation.formats import (
    VOLUME_ENDING,
    kind_of_volume,
    remark_on_maps,
    voxel_files,
    why_no_scan,
)
from medical_diffusion_components.preparation.patients import (
    PatientTable,
    group_patients,
    patient_of_pattern,
    read_patient_table,
)
from medical_diffusion_components.preparation.steps.load_scan import RawScan

__all__ = ["Inventory", "RawCase", "Selection", "take_inventory"]

_MIN_SLICES = 3  # of a volume
_IMAGE = "image"
# why series that call themselves so are left aside
_SPECIAL = {
    "localiser": "localiser, by its image type",
    "mosaic": "mosaic (all slices in one picture): convert it to NIfTI, as with dcm2niix",
}


class RawCase(NamedTuple):
    """One scan to prepare.

    ``split`` is None where it is still to be drawn. ``scan`` is None where the download lacks it; ``absent`` then says
    what was looked for. ``companions`` are paths of further files by key, such as a mask; ``about`` is what a table of
    participants says of the patient.
    """

    case_id: str
    patient_id: str
    split: str | None
    scan: RawScan | None
    absent: str = ""
    companions: Mapping[str, str] = {}
    about: Mapping[str, str] = {}

    @property
    def found(self) -> RawScan:
        """The scan of a case that has one.

        Raises:
            FileNotFoundError: the download lacks it.
        """
        if self.scan is None:
            raise FileNotFoundError(f"{self.case_id}: {self.absent}")
        return self.scan


class Selection(NamedTuple):
    """Which scans count and whose they are, as far as the user says.

    ``patient_pattern``: a regular expression, searched in the path inside the folder; its first group is the patient.
    ``patients``: path of a table of files and patients. ``select``: entities of BIDS names, such as ``"suffix=T1w"``; then
    one scan of each session is taken.
    """

    patient_pattern: str | None = None
    patients: str | os.PathLike | None = None
    select: str | Mapping[str, Any] | None = None


EVERYTHING = Selection()


@dataclass
class Inventory:
    """The account of a folder.

    Attributes:
        root: the folder.
        num_seen: files and links below it; hidden folders count as one.
        cases: scans to prepare.
        files_of: case id -> its files, as paths inside ``root``.
        aside: reason -> files left aside.
        kinds: kind (``"NIfTI"``, ``"DICOM image"``, ``"DICOM RT Structure Set"``) -> number of files.
        num_series, num_studies: of DICOM images.
        decided_by: what distinguished patients -> number of patients.
        remarks: what a person should know.
    """

    root: Path
    num_seen: int = 0
    cases: list[RawCase] = field(default_factory=list)
    files_of: dict[str, list[str]] = field(default_factory=dict)
    aside: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    kinds: Counter = field(default_factory=Counter)
    num_series: int = 0
    num_studies: int = 0
    decided_by: Mapping[str, int] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    @property
    def num_used(self) -> int:
        """Files of cases; with those left aside they are all that were seen."""
        return sum(len(files) for files in self.files_of.values())

    @property
    def num_aside(self) -> dict[str, int]:
        """Number of files left aside by reason, the commonest first."""
        counts = {reason: len(files) for reason, files in self.aside.items() if files}
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    @property
    def num_patients(self) -> int:
        """Number of patients of the cases."""
        return len({case.patient_id for case in self.cases})

    def leave(self, reason: str, paths: Iterable[Path]) -> None:
        """Put files aside."""
        self.aside[reason] += [path.relative_to(self.root).as_posix() for path in paths]

    def drop(self, case: RawCase, reason: str) -> None:
        """Put the files of a case aside."""
        self.cases.remove(case)
        self.aside[reason] += self.files_of.pop(case.case_id)


class _Found(NamedTuple):
    """A scan before it is a case. ``name`` is what its id is made of, ``inside`` the path that may name its patient."""

    name: str
    inside: str
    scan: RawScan
    files: list[Path]
    signs: dict[str, str]
    suffix: str = ""  # added to the name where two scans would have one


def take_inventory(
    raw_dir: str | os.PathLike, selection: Selection = EVERYTHING, index_file: str | os.PathLike | None = None
) -> Inventory:
    """Find the scans of a folder and account for every file in it.

    The case id is the path inside the folder, with ``_`` for ``/`` and ``-`` for whatever may not stand in a file's name.
    Part of a hash is added where ids would be the same, or differ in upper and lower case alone, which some disks do not
    tell apart: of the series UID for series that share a folder, else of the path.

    Args:
        raw_dir: the folder.
        selection: which scans count, and whose they are.
        index_file: where to keep what DICOM headers said.

    Raises:
        FileNotFoundError: no such folder, or it holds no scan.
        ValueError: the selection does not fit, or a table of participants that lists none of the subjects.
    """
    inventory, files, index = sort_files(raw_dir, index_file)
    root = inventory.root
    found = _volumes(inventory, [path for path in files if kind_of_volume(path)])
    found += _series(inventory, index)
    people = read_participants([path for path in files if path.name.lower() == "participants.tsv"])
    check_participants(people, [scan.signs.get("subject", "") for scan in found])
    if selection.select is not None:
        found = _selected(inventory, found, parse_select(selection.select))
    if not found:
        raise FileNotFoundError(_nothing(inventory))
    ids = case_ids([(scan.name, scan.suffix, scan.scan.path) for scan in found])
    table = None if selection.patients is None else read_patient_table(selection.patients, root)
    first: dict[str, str] = {}  # a.nii and a.nii.gz, or a.nrrd, are of one patient
    signs = [
        _signs(scan, case_id, selection, table, people) | {"file": first.setdefault(scan.name, case_id)}
        for scan, case_id in zip(found, ids)
    ]
    grouping = group_patients(_beside_dicom(found, signs))
    inventory.decided_by = grouping.decided_by
    inventory.remarks += [*grouping.remarks, *([] if table is None else table.remarks())]
    inventory.remarks += remark_on_values(people)
    inventory.remarks += remark_on_unlisted(people, (scan.signs.get("subject", "") for scan in found))
    for scan, case_id, patient in sorted(zip(found, ids, grouping.patients), key=lambda item: item[1]):
        about = about_participant(people, scan.signs.get("subject", ""))
        inventory.cases.append(RawCase(case_id, patient, None, scan.scan, about=about))
        inventory.files_of[case_id] = [path.relative_to(root).as_posix() for path in scan.files]
    _remark_on_suffixes(inventory, found, selection)
    inventory.remarks += remark_on_maps([scan.inside for scan in found])
    return inventory


def sort_files(
    raw_dir: str | os.PathLike, index_file: str | os.PathLike | None = None, headers: bool = True
) -> tuple[Inventory, list[Path], dict[Path, IndexedFile]]:
    """List a folder and put aside what can be no part of a scan.

    Returns:
        The account so far, the files that are left, and what those of them are to DICOM that are no other volume.

    Raises:
        FileNotFoundError: no such folder.
    """
    root = Path(raw_dir).expanduser().resolve()
    if not root.is_dir():
        raise FileNotFoundError(f"raw_dir must be the folder of the raw data; there is no folder {root}")
    below = files_below(root)
    inventory = Inventory(root, sum(map(len, below)))
    inventory.leave("hidden", below.hidden)
    inventory.leave("broken link", below.broken_links)
    inventory.leave("link to a folder seen already", below.seen_folders)
    inventory.leave("folder that cannot be listed, or file that cannot be looked at", below.unreadable)
    names = [path.relative_to(root).as_posix() for path in below.files]
    made_from_scans = derivatives(root, names)
    derived = {path for path, name in zip(below.files, names) if name in made_from_scans}
    inventory.leave("BIDS derivatives or source data", sorted(derived))
    files = [path for path in below.files if path not in derived]
    pairs = {image for path in files for image in voxel_files(path)}
    others = [path for path in files if not kind_of_volume(path) and path not in pairs]
    index = index_dicom(root, others, index_file) if headers else {}
    for path, record in index.items():
        if record.kind == NO_DICOM:
            inventory.kinds[Path(path.name).suffix.lower() or "no suffix"] += 1
            inventory.leave(why_no_scan(path), [path])
        elif record.kind not in (_IMAGE, DAMAGED):
            inventory.leave(f"DICOM without a scan ({record.kind})", [path])
        if record.kind != NO_DICOM:
            inventory.kinds["DICOM " + record.kind] += 1
    return inventory, files, index


def _volumes(inventory: Inventory, paths: Sequence[Path]) -> list[_Found]:
    found = []
    for path in paths:
        kind = kind_of_volume(path)
        own = [path, *voxel_files(path)]
        inventory.kinds[kind] += len(own)
        if is_label_file(path):
            inventory.leave("label map", own)
            continue
        inside = path.relative_to(inventory.root).as_posix()
        name = re.sub(VOLUME_ENDING, "", inside, flags=re.IGNORECASE)
        signs = {"subject": entities_of(inside).subject, "folder": subject_of_folder(inside)}
        found.append(_Found(name, inside, RawScan(str(path)), own, signs))
    return found


def _series(inventory: Inventory, index: Mapping[Path, IndexedFile]) -> list[_Found]:
    """Series of enough slices, wherever their slices lie; and folders of files that look like DICOM and are unreadable."""
    root = inventory.root
    beside: dict[Path, list[Path]] = defaultdict(list)  # what the reader of a series has to look at
    series: dict[tuple[str, str], list[IndexedFile]] = defaultdict(list)
    for path, record in index.items():
        if record.kind in (_IMAGE, DAMAGED, NO_DICOM):
            beside[path.parent].append(path)
        if record.kind == _IMAGE:
            series[record.study_uid, record.series_uid].append(record)
    inventory.num_series, inventory.num_studies = len(series), len({study for study, _ in series})
    found, copies = [], set()
    for slices in series.values():
        copies |= _copies(slices)
    inventory.leave("copy of a slice", sorted(copies))
    for (study, uid), slices in sorted(series.items()):
        files = [record.path for record in slices if record.path not in copies]
        kinds = {record.special for record in slices}
        if len(kinds) == 1 and (special := kinds.pop()):
            inventory.leave(_SPECIAL[special], files)
            continue
        if sum(record.frames for record in slices if record.path not in copies) < _MIN_SLICES:
            inventory.leave(f"series of fewer than {_MIN_SLICES} slices (localiser, screenshot)", files)
            continue
        folders = sorted({path.parent for path in files})
        name = Path(os.path.commonpath(folders)).relative_to(root).as_posix()
        candidates = tuple(str(path) for folder in folders for path in beside[folder] if path not in copies)
        signs = {
            kind: _join(getattr(record, kind) for record in slices)
            for kind in ("patient", "spelling", "space", "person")
        }
        signs |= {"study": short_hash(study), "subject": entities_of(f"{name}/x").subject}
        if len(folders) > 1:
            inventory.remarks.append(
                f"the slices of one series lie in {len(folders)} folders below {name}: read as one"
            )
        scan = RawScan(os.path.commonpath(folders), uid, files=candidates)
        found.append(_Found(name, name, scan, files, signs, f"series_{short_hash(uid)}"))
    with_slices = {path.parent for scan in found for path in scan.files}
    for folder, paths in beside.items():
        damaged = [path for path in paths if index[path].kind == DAMAGED]
        if damaged and folder not in with_slices:
            name = folder.relative_to(root).as_posix()
            scan = RawScan(str(folder), files=tuple(map(str, paths)))
            found.append(_Found(name, name, scan, damaged, {}, "unreadable"))
        else:
            inventory.leave("unreadable beside slices", damaged)
    return found


def _copies(slices: Sequence[IndexedFile]) -> set[Path]:
    """Files that hold, byte for byte, a slice that another file of the series holds."""
    by_instance: dict[str, list[Path]] = defaultdict(list)
    for record in slices:
        by_instance[record.instance].append(record.path)
    copies = set()
    for instance, paths in by_instance.items():
        if instance and len(paths) > 1:
            first: dict[str, Path] = {}
            for path in sorted(paths):
                if first.setdefault(file_hash(path), path) != path:
                    copies.add(path)
    return copies


def _selected(inventory: Inventory, found: list[_Found], wanted: Mapping[str, Collection[str]]) -> list[_Found]:
    """Of the scans that fit, one per session; the rest is left aside."""
    fit = [
        scan
        for scan in found
        if all(entities_of(scan.inside).values.get(key) in values for key, values in wanted.items())
    ]
    if not fit:
        there = sorted({entities_of(scan.inside).values.get("suffix", "none") for scan in found})
        raise ValueError(f"select: no scan has {dict(wanted)}; the suffixes there are {there}")
    chosen = keep_one_per_session(scan.inside for scan in fit)
    for scan in found:
        if scan not in fit:
            inventory.leave("not selected", scan.files)
        elif scan.inside not in chosen:
            inventory.leave("another scan of the session (the lowest run is taken)", scan.files)
    return [scan for scan in fit if scan.inside in chosen]


def _signs(
    scan: _Found, case_id: str, selection: Selection, table: PatientTable | None, people: Mapping[str, Any]
) -> dict[str, str]:
    signs = dict(scan.signs)
    if not signs.get("subject"):
        named = [part for part in Path(scan.name).parts if part in people or f"sub-{part}" in people]
        signs["subject"] = named[0] if named else ""
    scan.signs["subject"] = signs["subject"]
    if table is not None:
        signs["table"] = table.patient_of((scan.inside, case_id, scan.name))
    elif selection.patient_pattern is not None:
        signs["pattern"] = patient_of_pattern(selection.patient_pattern, scan.inside)
    return signs


def _beside_dicom(found: Sequence[_Found], signs: list[dict[str, str]]) -> list[dict[str, str]]:
    """A file that lies in a folder with the slices of one patient is this patient's, as converters leave it."""
    patients: dict[Path, set[tuple[str, str]]] = defaultdict(set)
    for scan, own in zip(found, signs):
        if sign := next(((kind, own[kind]) for kind in ("patient", "study") if own.get(kind)), None):
            for folder in {path.parent for path in scan.files}:
                patients[folder].add(sign)
    for scan, own in zip(found, signs):
        here = patients.get(scan.files[0].parent, set())
        if len(here) == 1 and not any(own.get(kind) for kind in ("patient", "study", "subject")):
            own.update(here)
    return signs


def _remark_on_suffixes(inventory: Inventory, found: Sequence[_Found], selection: Selection) -> None:
    suffixes = Counter(entities_of(scan.inside).values.get("suffix") for scan in found)
    suffixes.pop(None, None)
    if selection.select is None and len(suffixes) > 1:
        listed = ", ".join(f"{name} {number}" for name, number in suffixes.most_common())
        inventory.remarks.append(
            f"a BIDS data set of several kinds of scans ({listed}): choose with --select suffix=T1w"
        )


def _nothing(inventory: Inventory) -> str:
    there = ", ".join(f"{number} {reason}" for reason, number in inventory.num_aside.items()) or "no file at all"
    return f"no NIfTI file, array or DICOM series below {inventory.root}: give the raw data as raw_dir (found: {there})"


def _join(values: Iterable[str]) -> str:
    return min((value for value in values if value), default="")
