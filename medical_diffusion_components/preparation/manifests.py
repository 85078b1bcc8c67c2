"""Manifests: which cases a dataset has, whose they are, in which split, and where the images come from.

A manifest is a JSON file with the three lists of MONAI's datalists (``training``, ``validation``, ``test``),
so that ``monai.data.load_decathlon_datalist`` reads it, and with what a user must know about the data at its
top: licence, access, citation, what it was built from and how it was split. ``data_manifests/README.md``
describes the format.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from medical_diffusion_components.data.splits import SPLITS, spelling
from medical_diffusion_components.files import write_atomically

__all__ = ["Manifest", "manifest_bytes", "manifest_hash", "read_manifest", "write_manifest"]

METADATA_KEYS = ("name", "description", "version", "licence", "access", "reference", "built_from", "split")
CASE_KEYS = ("case_id", "patient_id", "source")
SOURCE_KEYS = ("path", "series_uid", "image_id")
# Ids become names of files and folders on any operating system.
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")


@dataclass(frozen=True)
class Manifest:
    """The cases of a dataset and what must be known about it.

    Attributes:
        metadata: what stands at the top of the file (`METADATA_KEYS` at least), without the counts and the
            case lists.
        cases: one dictionary per case with ``case_id``, ``patient_id``, ``split`` (``training``,
            ``validation`` or ``test``), ``source`` and whatever else the dataset's builder recorded.

    Raises:
        ValueError: missing keys; ids that cannot be file names; a case id used twice; a patient or a source in two
            splits; patients in two splits whose ids differ in case or leading zeros alone; a case without a source or with
            a path that leaves the raw folder; a split without cases
            (MONAI's loader cannot read an empty ``test``).
    """

    metadata: Mapping[str, Any]
    cases: tuple[Mapping[str, Any], ...]

    def __post_init__(self) -> None:
        _validate(self.metadata, self.cases, str(self.metadata.get("name", "manifest")))

    @property
    def counts(self) -> dict[str, int]:
        """Number of cases, of patients, and of cases in each split."""
        in_split = {split: sum(case["split"] == split for case in self.cases) for split in SPLITS}
        patients = len({case["patient_id"] for case in self.cases})
        return {"cases": len(self.cases), "patients": patients, **in_split}

    def select(self, key: str, allowed: Collection[Any]) -> Manifest:
        """Keep the cases whose ``key`` has one of the allowed values: ``select("kind", ["IDEAL"])``.

        Raises:
            ValueError: a case has no such key, an allowed value occurs nowhere, or a split would be left
                empty.
        """
        if lacking := [case["case_id"] for case in self.cases if key not in case]:
            raise ValueError(f"{self.metadata['name']}: case {lacking[0]!r} has no {key!r} to select by")
        present = {case[key] for case in self.cases}
        if unknown := [value for value in allowed if value not in present]:
            raise ValueError(
                f"{self.metadata['name']}: no case has {key} {unknown[0]!r}; the values are {sorted(present)}"
            )
        return Manifest(self.metadata, tuple(case for case in self.cases if case[key] in allowed))


def read_manifest(path: str | os.PathLike) -> Manifest:
    """Read and check a manifest.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not a manifest, or breaks one of the rules of `Manifest`, or holds other
            numbers of cases than its ``counts`` say.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not a JSON file: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(content).__name__}")
    cases = []
    for split in SPLITS:
        listed = content.pop(split, None)
        if not isinstance(listed, list):
            raise ValueError(f"{path}: expected a list of cases under {split!r}, got {type(listed).__name__}")
        for number, case in enumerate(listed):
            if not isinstance(case, dict):
                raise ValueError(f"{path}: {split} case {number}: expected an object, got {case!r}")
            cases.append({**case, "split": split})
    counts = content.pop("counts", None)
    _validate(content, cases, str(path))
    manifest = Manifest(content, tuple(cases))
    if counts != manifest.counts:
        raise ValueError(f"{path}: 'counts' says {counts}, the lists hold {manifest.counts}")
    return manifest


def write_manifest(manifest: Manifest, path: str | os.PathLike) -> str:
    """Write a manifest: the same manifest gives the same bytes everywhere.

    The file appears under its name only when it is complete.

    Returns:
        The manifest's hash (`manifest_hash`), which is the SHA-256 of the file.
    """
    content = manifest_bytes(manifest)
    write_atomically(path, Path.write_bytes, content)
    return hashlib.sha256(content).hexdigest()


def manifest_hash(manifest: Manifest) -> str:
    """SHA-256 of the bytes that `write_manifest` would write, as hexadecimal digits."""
    return hashlib.sha256(manifest_bytes(manifest)).hexdigest()


def manifest_bytes(manifest: Manifest) -> bytes:
    """The file's content: one line per key and per case, cases sorted by id, ASCII only."""
    blocks = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in manifest.metadata.items()]
    blocks.append(f'"counts": {json.dumps(manifest.counts)}')
    for split in SPLITS:
        chosen = sorted((c for c in manifest.cases if c["split"] == split), key=lambda c: c["case_id"])
        lines = (json.dumps({k: v for k, v in c.items() if k != "split"}, separators=(",", ":")) for c in chosen)
        blocks.append(f"{json.dumps(split)}: [\n" + ",\n".join(lines) + "\n]")
    return ("{\n" + ",\n".join(blocks) + "\n}\n").encode("ascii")


def _validate(metadata: Mapping[str, Any], cases: Sequence[Mapping[str, Any]], where: str) -> None:
    """Refuse what could mislead a later step, in the name of the file or dataset ``where``."""
    for key in METADATA_KEYS:
        if not metadata.get(key):
            raise ValueError(f"{where}: the manifest has no {key!r}; the required keys are {METADATA_KEYS}")
    if clash := {*SPLITS, "counts"} & set(metadata):
        raise ValueError(f"{where}: {sorted(clash)} must not stand in the metadata")
    seen: set[str] = set()
    split_of: dict[str, str] = {}
    spelt: dict[str, Mapping[str, Any]] = {}
    sources: dict[str, Mapping[str, Any]] = {}
    for number, case in enumerate(cases):
        _validate_case(case, f"{where}: case {case.get('case_id', f'number {number}')!r}")
        case_id, patient, split = case["case_id"], case["patient_id"], case["split"]
        if case_id in seen:
            raise ValueError(f"{where}: the case id {case_id!r} is used twice")
        seen.add(case_id)
        if split_of.setdefault(patient, split) != split:
            raise ValueError(
                f"{where}: patient {patient!r} is in {split_of[patient]} and, by case {case_id!r}, in {split}"
            )
        other = spelt.setdefault(spelling(patient), case)
        if other["split"] != split:
            raise ValueError(
                f"{where}: patients {other['patient_id']!r} (case {other['case_id']!r}, {other['split']}) and {patient!r} "
                f"(case {case_id!r}, {split}) differ in case or leading zeros alone: put them into one split, or give them "
                "ids that differ otherwise"
            )
        other = sources.setdefault(json.dumps(case["source"], sort_keys=True), case)
        if other["split"] != split:
            raise ValueError(
                f"{where}: cases {other['case_id']!r} ({other['split']}) and {case_id!r} ({split}) are made from one "
                f"source {case['source']!r}: it must be in one split"
            )
    if empty := [split for split in SPLITS if split not in split_of.values()]:
        raise ValueError(f"{where}: no case in {', '.join(empty)}; each of {SPLITS} needs one")


def _validate_case(case: Mapping[str, Any], where: str) -> None:
    for key in (*CASE_KEYS, "split"):
        if key not in case:
            raise ValueError(f"{where} has no {key!r}")
    for key in ("case_id", "patient_id"):
        if not isinstance(case[key], str) or not _ID.fullmatch(case[key]):
            raise ValueError(f"{where}: {key} must be letters, digits, '.', '_' or '-', got {case[key]!r}")
    if case["split"] not in SPLITS:
        raise ValueError(f"{where}: split must be one of {SPLITS}, got {case['split']!r}")
    source = case["source"]
    if not isinstance(source, Mapping) or sum(key in source for key in SOURCE_KEYS) != 1:
        raise ValueError(f"{where}: source must be an object with exactly one of {SOURCE_KEYS}, got {source!r}")
    kind = next(key for key in SOURCE_KEYS if key in source)
    value = source[kind]
    if not isinstance(value, str) or not value:
        raise ValueError(f"{where}: source {kind} must be text, got {value!r}")
    if kind == "series_uid" and not _UID.fullmatch(value):
        raise ValueError(f"{where}: source series_uid must be a DICOM UID, got {value!r}")
    if kind == "path" and ("\\" in value or PurePosixPath(value).is_absolute() or ".." in PurePosixPath(value).parts):
        raise ValueError(f"{where}: source path must be relative, with '/', inside the raw folder, got {value!r}")
