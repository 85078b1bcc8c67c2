"""Build a manifest of ADNI scans from your own collection's CSV.

ADNI lets nobody pass its lists on, so no list is committed here: download the CSV of your image collection
from the Image and Data Archive and run ``python data_manifests/build_adni.py --csv MY_COLLECTION.csv --out
adni.json``. What comes out names subjects and images: keep it where the data are.
"""

from __future__ import annotations

import csv
import datetime
import hashlib
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

from builders import builder_arguments, finish

from medical_diffusion_components.data.splits import split_patients
from medical_diffusion_components.preparation.manifests import Manifest

COLUMNS = ("Image Data ID", "Subject", "Group", "Visit", "Modality", "Description", "Acq Date")
# "MP-RAGE", "Accelerated Sagittal MPRAGE", and the processed "MPR; GradWarp; B1 Correction; N3; Scaled".
MP_RAGE = r"mp-?rage|\bmpr\b"


class Scan(NamedTuple):
    """One row of the collection that matched."""

    image_id: str
    subject: str
    visit: str
    description: str
    date: datetime.date
    line: int


def read_scans(path: Path, group: str = "CN", description: str = MP_RAGE) -> list[Scan]:
    """The MRI rows of a collection's CSV in the group whose description matches.

    Args:
        path: the CSV, with the archive's header.
        group: value of the column ``Group``, e.g. ``CN`` for cognitively normal.
        description: regular expression to find in the column ``Description``; case does not matter.

    Raises:
        ValueError: a column is missing, no row matches, or a matching row has a bad image id, date
            (month/day/year) or subject, or an image id that an earlier row has.
    """
    try:
        wanted = re.compile(description, re.IGNORECASE)
    except re.error as error:
        raise ValueError(f"description: {description!r} is no regular expression: {error}") from error
    scans: list[Scan] = []
    seen: Counter[tuple[str, str]] = Counter()
    line_of: dict[str, int] = {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, skipinitialspace=True)
        reader.fieldnames = [name.strip() for name in reader.fieldnames or []]
        if missing := [column for column in COLUMNS if column not in reader.fieldnames]:
            raise ValueError(f"{path}: no column {missing[0]!r}; the header has {reader.fieldnames}")
        for raw in reader:
            where = f"{path}, line {reader.line_num}"
            if any(raw[column] is None for column in COLUMNS):
                raise ValueError(f"{where}: the row has fewer fields than the header")
            row = {column: raw[column].strip() for column in COLUMNS}
            seen[row["Group"], row["Description"]] += 1
            if row["Modality"] != "MRI" or row["Group"] != group or not wanted.search(row["Description"]):
                continue
            scan = _scan(row, where, reader.line_num)
            if scan.image_id in line_of:
                raise ValueError(f"{where}: image {scan.image_id} is already in line {line_of[scan.image_id]}")
            line_of[scan.image_id] = scan.line
            scans.append(scan)
    if not scans:
        raise ValueError(
            f"{path}: no MRI row of group {group!r} with a description like {description!r}; "
            f"the most frequent (group, description) are {seen.most_common(5)}"
        )
    return scans


def _scan(row: dict[str, str], where: str, line: int) -> Scan:
    number = re.fullmatch(r"I?(\d+)", row["Image Data ID"])
    if number is None:
        raise ValueError(f"{where}: expected an image id such as I12345 or 12345, got {row['Image Data ID']!r}")
    if not re.fullmatch(r"\w+", row["Subject"], re.ASCII):
        raise ValueError(f"{where}: expected a subject such as 123_S_4567, got {row['Subject']!r}")
    try:
        date = datetime.datetime.strptime(row["Acq Date"], "%m/%d/%Y").date()
    except ValueError as error:
        raise ValueError(f"{where}: expected a date month/day/year, got {row['Acq Date']!r}") from error
    return Scan(f"I{int(number[1])}", row["Subject"], row["Visit"], row["Description"], date, line)


def earliest_scans(scans: list[Scan]) -> list[Scan]:
    """Each subject's earliest scan; of several on one day the one with the lowest image id."""
    by_subject: dict[str, list[Scan]] = defaultdict(list)
    for scan in scans:
        by_subject[scan.subject].append(scan)
    return [min(group, key=lambda scan: (scan.date, int(scan.image_id[1:]))) for group in by_subject.values()]


def build(
    path: Path, group: str = "CN", description: str = MP_RAGE, scans: str = "all", name: str = "ADNI"
) -> Manifest:
    """The manifest, from a collection's CSV (see `read_scans`).

    Args:
        scans: ``all`` scans of each subject, or only the ``first``.
        name: the manifest's name.
    """
    if scans not in ("all", "first"):
        raise ValueError(f"scans must be 'all' or 'first', got {scans!r}")
    chosen = read_scans(path, group, description)
    if scans == "first":
        chosen = earliest_scans(chosen)
    splits = split_patients(scan.subject for scan in chosen)
    cases = [
        {
            "case_id": f"{scan.subject}_{scan.image_id}",
            "patient_id": scan.subject,
            "split": splits[scan.subject],
            "visit": scan.visit,
            "description": scan.description,
            "source": {"image_id": scan.image_id},
        }
        for scan in chosen
    ]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Manifest(
        {
            "name": name,
            "description": f"Brain MRI of group {group}: {scans} matching scans of each subject",
            "version": "1",
            "licence": "ADNI Data Use Agreement",
            "access": (
                "Application at https://adni.loni.usc.edu/data-samples/adni-data/; data, ids and lists must "
                "not be passed on"
            ),
            "reference": "Petersen et al., Neurology 74(3), 201-209 (2010), doi:10.1212/WNL.0b013e3181cb3e25",
            "built_from": [f"{path.name}, sha256 {digest}"],
            "selection": {"group": group, "description": description, "scans": scans},
            "split": "by subject, from a hash of the subject id (split_patients, shares 0.8 / 0.1 / 0.1)",
        },
        tuple(cases),
    )


def main(argv: list[str] | None = None) -> int:
    parser = builder_arguments(__doc__, None)
    parser.add_argument("--csv", type=Path, required=True, help="the collection's CSV")
    parser.add_argument("--group", default="CN", help="value of the column Group (default: %(default)s)")
    parser.add_argument("--description", default=MP_RAGE, help="regular expression (default: %(default)s)")
    parser.add_argument("--scans", choices=("all", "first"), default="all", help="of each subject")
    parser.add_argument("--name", default="ADNI", help="the manifest's name (default: %(default)s)")
    arguments = parser.parse_args(argv)
    manifest = build(arguments.csv, arguments.group, arguments.description, arguments.scans, arguments.name)
    return finish(manifest, arguments.out, arguments.check)


if __name__ == "__main__":
    sys.exit(main())
