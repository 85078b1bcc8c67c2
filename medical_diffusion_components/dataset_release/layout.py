"""Where the volumes of a data set lie, and the tables that list them: BIDS, a plain folder of NIfTI, or DICOM series."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medical_diffusion_components.data.splits import SPLITS, split_patients
from medical_diffusion_components.dataset_release.facts import ReleaseError, ReleaseFacts, licence_url, public_note
from medical_diffusion_components.files import PACKAGE_NAME, file_hash, write_json

__all__ = ["Volume", "bids_files", "splits_of", "table", "write_datalist", "write_volumes"]

TABLE = "volumes.csv"
NOT_BIDS = (
    "croissant.json", "DATA_TERMS.txt", "dataset.json", "datasheet.md", "preview.png", "reports", "SHA256SUMS", "splits",
    TABLE,
)  # fmt: skip
BIDS_VERSION = "1.10.0"

Volume = dict[str, Any]  # a row of the table


def splits_of(numbers: Sequence[int], validation: float, test: float) -> dict[int, str]:
    """Number of each volume -> its split; every volume is a subject of its own, and stays where it is in a larger set.

    Raises:
        ReleaseError: fewer than three volumes, or shares that leave a split empty.
    """
    try:
        return {int(id): split for id, split in split_patients(map(str, numbers), validation, test).items()}
    except ValueError as error:
        raise ReleaseError(f"the splits of the data set: {error}".replace("patients", "volumes")) from error


def write_volumes(
    folder: Path, volumes: Mapping[int, tuple[Path, Mapping[str, Any]]], splits: Mapping[int, str], suffix: str | None
) -> list[Volume]:
    """Copy volumes and write their notes.

    Args:
        folder: of the data set.
        volumes: number -> file or folder of DICOM images, and the note of the volume.
        splits: number -> split.
        suffix: of BIDS, such as T1w; None: all in one folder.

    Returns:
        a row of the table per volume.
    """
    rows = []
    for number, (source, note) in volumes.items():
        name, seed = f"synthetic_{note['seed']:06d}", note["seed"]
        if source.is_dir():
            target = folder / "dicom" / name
            shutil.copytree(source, target)
            sidecar, files = target.with_suffix(".json"), sorted(target.iterdir())
        else:
            subject = f"sub-{seed:06d}"
            stem = f"{subject}/anat/{subject}_{suffix}" if suffix else f"images/{name}"
            target = folder / f"{stem}.nii.gz"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            sidecar, files = folder / f"{stem}.json", [target]
            name = subject if suffix else name
        write_json(sidecar, public_note(note))
        row = {"id": name, "image": target.relative_to(folder).as_posix(), "split": splits[number], "seed": seed}
        row |= {"sha256": file_hash(files[0])} if len(files) == 1 else {"images": len(files)}
        conditions = dict(note.get("conditions") or {})
        if both := row.keys() & conditions.keys():
            raise ReleaseError(f"expected conditions of other names than the table's columns, got {sorted(both)}")
        rows.append(row | conditions)
    return rows


def table(rows: Sequence[Mapping[str, Any]], delimiter: str = ",", missing: str = "") -> str:
    """Rows as CSV, ``missing`` where a row has no value."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", delimiter=delimiter)
    writer.writeheader()
    writer.writerows({key: missing if row.get(key) is None else row[key] for key in columns} for row in rows)
    return text.getvalue()


def write_datalist(folder: Path, rows: Sequence[Volume], facts: ReleaseFacts) -> None:
    """``dataset.json`` (the datalist that MONAI reads), ``volumes.csv`` and one table per split."""
    listed = {
        split: [
            {"image": row["image"], "case_id": row["id"]} | _conditions(row) for row in rows if row["split"] == split
        ]
        for split in SPLITS
    }
    heading = {"name": facts.title, "description": facts.origin(), "licence": facts.licence, "release": facts.version}
    write_json(folder / "dataset.json", {**heading, "synthetic": True, "modality": {"0": facts.modality}, **listed})
    (folder / TABLE).write_text(table(rows))
    (folder / "splits").mkdir()
    for split in SPLITS:
        (folder / "splits" / f"{split}.csv").write_text(table([row for row in rows if row["split"] == split]))


def _conditions(row: Volume) -> dict[str, Any]:
    given = {
        key: value for key, value in row.items() if key not in ("id", "image", "split", "seed", "sha256", "images")
    }
    return {"conditions": given} if given else {}


def bids_files(rows: Sequence[Volume], facts: ReleaseFacts) -> dict[str, str]:
    """What BIDS wants at the top of a data set: name -> content."""
    version = facts.weights["versions"][PACKAGE_NAME]
    weights = facts.weights["weights_sha256"]
    generated = {
        "Name": PACKAGE_NAME,
        "Version": version,
        "Description": f"{facts.bundle}, weights with SHA-256 {weights}, {facts.sampler}, {facts.steps} steps",
    }
    description = {
        "Name": facts.title,
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "raw",  # BIDS knows no synthetic data, and of a derivative it asks what nobody knows of these
        "License": facts.licence,
        **({"Authors": [facts.creator]} if facts.creator else {}),
        "GeneratedBy": [generated],
        "ReferencesAndLinks": [licence_url(facts.licence), "https://doi.org/10.1038/s41598-023-34341-2"],
        "Description": f"{facts.origin()} {facts.privacy()}",
        "Synthetic": True,
    }
    hidden = ("image", "id", "sha256", "images")
    people = [
        {"participant_id": row["id"]} | {key: value for key, value in row.items() if key not in hidden} for row in rows
    ]
    meanings = {
        "split": {
            "Description": "which part of the data set",
            "Levels": {split: f"{split} volumes" for split in SPLITS},
        },
        "seed": {"Description": "of the starting noise that the volume was sampled from"},
    }
    return {
        "dataset_description.json": json.dumps(description, indent=2) + "\n",
        "participants.tsv": table(people, "\t", "n/a"),
        "participants.json": json.dumps(meanings, indent=2) + "\n",
        ".bidsignore": "".join(f"{name}\n" for name in NOT_BIDS),
    }
