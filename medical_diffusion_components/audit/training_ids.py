"""Names for training volumes that tell nothing to those who hold a scan.

By the plain hash of a file, whoever has that file could find out from a report whether it was in the training set. So
reports and notes name training volumes by a keyed hash. The key, and the list of which volume is which, stay in a
folder ``at_home`` beside the reports.
"""

from __future__ import annotations

import csv
import hashlib
import hmac
import io
import os
import re
from pathlib import Path

from medical_diffusion_components.audit.volumes import AuditedVolumes
from medical_diffusion_components.files import write_atomically

__all__ = ["training_ids", "volumes_by_id"]

AT_HOME = "at_home"  # folder
KEY, LIST = "key.txt", "training_volumes.csv"
COLUMNS = ("id", "case_id", "sha256")


def training_ids(training: AuditedVolumes, folder: str | Path) -> list[str]:
    """A name for each training volume: 16 hexadecimal digits, the same for the same file and folder.

    Writes the key, where there is none, and the list of names and cases, both below ``folder``/at_home.

    Args:
        training: the training volumes.
        folder: of the audit.

    Raises:
        ValueError: the key's file holds no key.
    """
    home = Path(folder) / AT_HOME
    key = _key(home / KEY)
    ids = [hmac.new(key, digest.encode(), hashlib.sha256).hexdigest()[:16] for digest in training.hashes]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(zip(ids, (case["case_id"] for case in training.cases), training.hashes))
    write_atomically(home / LIST, lambda temporary: temporary.write_text(text.getvalue()))
    return ids


def volumes_by_id(folder: str | Path) -> dict[str, str]:
    """Name -> SHA-256 of the training volume's file, as far as the list is there: it does not travel with a report."""
    path = Path(folder) / AT_HOME / LIST
    if not path.is_file():
        return {}
    with path.open(newline="") as file:
        return {row["id"]: row["sha256"] for row in csv.DictReader(file)}


def _key(path: Path) -> bytes:
    if path.is_file() and path.stat().st_size == 0 and not path.with_name(LIST).exists():
        path.unlink()  # of a process that was killed as it made the key, before any name was given
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(os.urandom(32).hex())
    text = path.read_text().strip()
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise ValueError(f"{path} holds no key of 64 hexadecimal digits: delete it, and the next audit gives new names")
    return bytes.fromhex(text)
