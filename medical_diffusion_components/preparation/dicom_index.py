"""What the DICOM files of a tree are, kept from run to run as long as no file changes."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from tqdm import tqdm

from medical_diffusion_components.files import write_json
from medical_diffusion_components.preparation.case_ids import short_hash

__all__ = ["IndexedFile", "index_dicom"]

NO_DICOM, DAMAGED = "", "damaged"
_VERSION = 4  # of the index file
_HEADER_THREADS = 8  # reading headers waits for the disk more than for the processor


class IndexedFile(NamedTuple):
    """A file and what it is to DICOM.

    ``kind`` is empty for no DICOM, ``"damaged"`` for an unreadable header or a file that is only named like DICOM, else
    as in :class:`~medical_diffusion_components.dicom.objects.DicomObject`, whose fields the others are.
    """

    path: Path
    kind: str
    series_uid: str = ""
    study_uid: str = ""
    patient: str = ""
    instance: str = ""
    modality: str = ""
    frames: int = 1
    person: str = ""
    space: str = ""
    special: str = ""
    spelling: str = ""


def index_dicom(
    root: Path, files: Iterable[Path], index_file: str | os.PathLike | None = None
) -> dict[Path, IndexedFile]:
    """Identify every file.

    Args:
        root: the files lie below it.
        files: to be identified.
        index_file: where to keep what was found. A folder is read again as soon as the name, size or time of change of
            one of its files is another.

    Raises:
        ImportError: there is DICOM and pydicom is not installed.
    """
    folders: dict[str, list[Path]] = defaultdict(list)
    for path in files:
        folders[path.parent.relative_to(root).as_posix()].append(path)
    known = _read_index(index_file, root)
    stamps = {name: _stamp(paths) for name, paths in folders.items()}
    index = {name: known[name] for name in folders if known.get(name, [None])[0] == stamps[name]}
    todo = [name for name in folders if name not in index]
    with ThreadPoolExecutor(_HEADER_THREADS) as pool:
        found = pool.map(lambda name: [_identify(path) for path in folders[name]], todo)
        bar = tqdm(zip(todo, found), "looking for DICOM", len(todo), unit="folder", disable=not todo)
        for name, records in bar:
            index[name] = [stamps[name], records]
    if index_file is not None and index != known:
        content = {"version": _VERSION, "raw_dir": short_hash(str(root)), "folders": index}
        write_json(index_file, content, indent=None)
    return {
        path: IndexedFile(path, *record)
        for name, paths in folders.items()
        for path, record in zip(paths, index[name][1])
    }


def _identify(path: Path) -> list:
    """The fields of an :class:`IndexedFile` after the path."""
    named_like_one = path.suffix.lower() in (".dcm", ".dicom", ".ima")
    try:
        with path.open("rb") as file:
            start = file.read(132)
        if start[128:132] != b"DICM" and start[:1] not in (b"\0", b"\2", b"\x08"):  # no element begins otherwise
            return [DAMAGED if named_like_one else NO_DICOM]
        objects = _objects()
        if not objects.is_dicom(start):
            return [DAMAGED if named_like_one else NO_DICOM]
        return list(objects.identify(path))
    except ImportError:
        raise
    except Exception:  # damaged in one of many ways: the reader of the series looks at it again and says so
        return [DAMAGED]


def _objects() -> ModuleType:
    try:
        import pydicom  # an extra: whoever has NIfTI does without

        from medical_diffusion_components.dicom import objects
    except ImportError as error:
        raise ImportError(
            "reading DICOM needs pydicom: pip install pydicom (the extra [prepare] of this package has it)"
        ) from error
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE  # quiet about what is checked later
    return objects


def _stamp(paths: Sequence[Path]) -> str:
    """Hash of what changes whenever a file does: its time of change moves even where a program restores the other."""
    stats = [(path.name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for path in paths if (stat := path.stat())]
    return short_hash(json.dumps(stats))


def _read_index(index_file: str | os.PathLike | None, root: Path) -> dict:
    if index_file is None or not Path(index_file).is_file():
        return {}
    try:
        content = json.loads(Path(index_file).read_text())
    except ValueError:
        return {}  # what it held is in the raw folder
    current = content.get("version") == _VERSION and content.get("raw_dir") == short_hash(str(root))
    return content["folders"] if current else {}
