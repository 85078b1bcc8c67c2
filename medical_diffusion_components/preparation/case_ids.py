"""What a case is called: by its place in the folder, in letters that any disk and any program takes."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePath

__all__ = ["case_ids", "short_hash", "without_uids"]

_UID = re.compile(r"(?<![\w.])(?:[0-2]\.\d+(?:\.\d+){2,}|2\.25\.\d+)(?!\w)")  # of DICOM, within a text
_LONGEST = 150  # characters: with what is added to it, a file's name stays below the 255 bytes of most disks


def case_ids(scans: Sequence[tuple[str, str, str]]) -> list[str]:
    """An id for each scan: its name with ``_`` for ``/`` and ``-`` for whatever may not stand in a file's name.

    Where ids would be the same, or differ in upper and lower case alone, which some disks do not tell apart, something is
    added: the suffix, or part of a hash of the name if there is none; for a second file of one name, such as ``a.nii.gz``
    beside ``a.nii``, a hash with its ending.

    Args:
        scans: name, suffix (may be empty) and path of each.
    """
    plain = [_case_id(name) for name, _, _ in scans]
    often = Counter(case_id.lower() for case_id in plain)
    ids = []
    for (name, suffix, _), case_id in zip(scans, plain):
        needed = suffix and (often[case_id.lower()] > 1 or name == ".")
        ids.append(_case_id(f"{name}/{suffix}") if needed else case_id)
    often = Counter(case_id.lower() for case_id in ids)
    first: dict[str, int] = {}
    for place, (name, suffix, path) in enumerate(scans):
        case_id = ids[place]
        if often[case_id.lower()] > 1 and not suffix:
            ids[place] = f"{case_id}_{short_hash(name)[:8]}"
        if first.setdefault(ids[place], place) != place:
            ids[place] = f"{case_id}_{short_hash(f'{name}/{PurePath(path).name}')[:8]}"
    return ids


def short_hash(text: str) -> str:
    """12 hexadecimal digits of a hash, or empty for an empty text."""
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:12] if text else ""


def without_uids(text: str) -> str:
    """A message with the hash of each UID in its place: as in the case ids of series that share a folder."""
    return _UID.sub(lambda match: short_hash(match[0]), text)


def _case_id(name: str) -> str:
    case_id = re.sub(r"[^A-Za-z0-9._-]", "-", name.replace("/", "_")).strip("._-") or f"case_{short_hash(name)}"
    return case_id if len(case_id) <= _LONGEST else f"{case_id[: _LONGEST - 13]}_{short_hash(name)}"
