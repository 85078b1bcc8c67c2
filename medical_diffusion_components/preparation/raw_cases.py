"""Where the scans of a download lie: the cases of a manifest, or of a folder without one."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from tqdm import tqdm

from medical_diffusion_components.data.datasets import NIFTI_SUFFIXES
from medical_diffusion_components.files import write_json
from medical_diffusion_components.preparation.manifests import Manifest
from medical_diffusion_components.preparation.steps.load_scan import RawScan

__all__ = ["RawCase", "cases_of_folder", "cases_of_manifest", "index_series"]

_FILE_SUFFIXES = (*NIFTI_SUFFIXES, ".npy")
_DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
_IMAGE_ID = re.compile(r"(?:^|_)I(\d+)(?:\.nii|\.nii\.gz)?$")
_NO_SERIES = ""  # key of folders that look like DICOM and hold no readable image
_HEADER_THREADS = 8  # reading headers waits for the disk more than for the processor


class RawCase(NamedTuple):
    """One scan to prepare.

    ``split`` is None where it is still to be drawn. ``scan`` is None where the download lacks it; ``absent`` then says
    what was looked for. ``companions`` are paths of further files by key, such as a mask.
    """

    case_id: str
    patient_id: str
    split: str | None
    scan: RawScan | None
    absent: str = ""
    companions: Mapping[str, str] = {}


class _Series(NamedTuple):
    folder: str  # relative to the raw folder
    uid: str
    patient: str  # a hash


def cases_of_manifest(
    manifest: Manifest, raw_dir: str | os.PathLike, index_file: str | os.PathLike | None = None
) -> list[RawCase]:
    """Find the scan of each case of a manifest.

    A ``path`` is relative to ``raw_dir``; a ``series_uid`` is looked up in the headers of all DICOM files below it; an
    ``image_id`` is the name of a folder (``I12345``) or the end of a file's name (``..._I12345.nii``).

    Args:
        manifest: which cases there are.
        raw_dir: the download.
        index_file: see :func:`index_series`.

    Raises:
        FileNotFoundError: no such folder, or it holds none of the cases.
    """
    root = _checked_folder(raw_dir)
    kinds = {kind for case in manifest.cases for kind in ("series_uid", "image_id") if kind in case["source"]}
    folders: dict[str, list[str]] = defaultdict(list)
    if "series_uid" in kinds:
        for series in index_series(root, index_file):
            folders[series.uid].append(series.folder)
    images = _find_image_ids(root) if "image_id" in kinds else {}
    found = [_case_of_manifest(case, root, folders, images) for case in manifest.cases]
    if not any(case.scan for case in found):
        raise FileNotFoundError(
            f"none of the {len(found)} cases of {manifest.metadata['name']} is in {root}: {found[0].absent}; "
            "give the folder of the raw download as raw_dir, or leave the manifest out (--manifest None) for data of "
            "your own"
        )
    return found


def cases_of_folder(
    raw_dir: str | os.PathLike, patient_pattern: str | None = None, index_file: str | os.PathLike | None = None
) -> list[RawCase]:
    """Take every NIfTI or ``.npy`` file and every DICOM series below a folder as a case.

    Hidden files and folders are left out. The case id is the path inside the folder, with ``_`` for ``/`` and ``-`` for
    whatever may not stand in a file's name; where a folder holds several series, part of a hash of the series UID is
    added. DICOM slices tell the patient (a hash of it becomes the patient id); any other file is its own patient,
    unless ``patient_pattern`` says otherwise.

    Args:
        raw_dir: the folder.
        patient_pattern: a regular expression, searched in the path inside the folder; its first group is the patient
            id. ``"^(sub-[^/_]+)"`` suits BIDS.
        index_file: see :func:`index_series`.

    Raises:
        FileNotFoundError: no such folder, or it holds no scan.
        ValueError: two scans would have one case id, or the pattern does not fit a path.
    """
    root = _checked_folder(raw_dir)
    cases = []
    for path in _files_below(root):
        if path.name.lower().endswith(_FILE_SUFFIXES):
            inside = path.relative_to(root).as_posix()
            case_id = _case_id(re.sub(r"(\.nii)?\.gz$|\.nii$|\.npy$", "", inside, flags=re.IGNORECASE))
            patient = case_id if patient_pattern is None else _patient(patient_pattern, inside)
            cases.append(RawCase(case_id, patient, None, RawScan(str(path))))
    series_of: dict[str, list[_Series]] = defaultdict(list)
    for series in index_series(root, index_file):
        series_of[series.folder].append(series)
    for folder, held in series_of.items():
        named = len(held) == 1 and folder != "."
        for series in held:
            case_id = _case_id(folder if named else f"{folder}/series_{_short_hash(series.uid)}")
            patient = series.patient or case_id
            patient = patient if patient_pattern is None else _patient(patient_pattern, folder)
            scan = RawScan(str(root / folder), series.uid or None)
            cases.append(RawCase(case_id, patient, None, scan))
    if not cases:
        raise FileNotFoundError(f"no NIfTI file, array or DICOM series below {root}: give the raw data as raw_dir")
    taken: dict[str, RawCase] = {}
    for case in cases:
        if case.case_id in taken:
            paths = f"{taken[case.case_id].scan.path} and {case.scan.path}"
            raise ValueError(f"{paths} would both be case {case.case_id}: rename one of them")
        taken[case.case_id] = case
    return sorted(cases, key=lambda case: case.case_id)


def index_series(raw_dir: str | os.PathLike, index_file: str | os.PathLike | None = None) -> list[_Series]:
    """Which DICOM series lie in which folder: the series UID of every file is read.

    Args:
        raw_dir: searched with all its subfolders.
        index_file: where to keep what was found; a folder whose files were not added to, renamed or removed since is
            not read again.

    Returns:
        By folder, then series UID: folder inside ``raw_dir``, series UID, hash of the patient. The UID is empty where
        a folder's files are named like DICOM, but none of them is readable.
    """
    root = _checked_folder(raw_dir)
    folders: dict[str, list[Path]] = defaultdict(list)
    for path in _files_below(root):
        if not path.name.lower().endswith(_FILE_SUFFIXES):
            folders[path.parent.relative_to(root).as_posix()].append(path)
    known = _read_index(index_file, root)
    stamps = {name: _stamp(root / name, files) for name, files in folders.items()}
    index = {name: known[name] for name in folders if known.get(name, [None])[0] == stamps[name]}
    todo = [name for name in folders if name not in index]
    with ThreadPoolExecutor(_HEADER_THREADS) as pool:
        listed = pool.map(lambda name: _series_in(folders[name]), todo)
        bar = tqdm(zip(todo, listed), "looking for DICOM series", len(todo), unit="folder", disable=not todo)
        for name, series in bar:
            index[name] = [stamps[name], series]
    if index_file is not None and index != known:
        content = {"raw_dir": _short_hash(str(root)), "folders": index}
        write_json(index_file, content, indent=None)
    return [_Series(name, uid, patient) for name in sorted(index) for uid, patient in sorted(index[name][1].items())]


def _case_of_manifest(
    case: Mapping, root: Path, folders: Mapping[str, list[str]], images: Mapping[str, list[Path]]
) -> RawCase:
    source = case["source"]
    if "path" in source:
        wanted, places = f"expected {source['path']}", [root / source["path"]]
        places = [place for place in places if place.exists()]
    elif "series_uid" in source:
        wanted = f"expected DICOM series {source['series_uid']}"
        places = [root / folder for folder in folders.get(source["series_uid"], [])]
    else:
        wanted = f"expected image {source['image_id']}"
        places = images.get(source["image_id"].lstrip("I"), [])
    names = (case["case_id"], case["patient_id"], case["split"])
    if not places:
        return RawCase(*names, None, f"{wanted}, which is not in the raw folder")
    if len(places) > 1:
        inside = ", ".join(place.relative_to(root).as_posix() for place in places[:4])
        return RawCase(*names, None, f"{wanted} in one place, found it in {len(places)}: {inside}")
    return RawCase(*names, RawScan(str(places[0]), source.get("series_uid"), source.get("num_images")))


def _series_in(files: Iterable[Path]) -> dict[str, str]:
    """Series UID -> hash of the patient, of the readable DICOM files."""
    series: dict[str, str] = {}
    suspicious = False
    for path in files:
        suspicious |= path.name.lower().endswith(_DICOM_SUFFIXES)
        try:
            with open(path, "rb") as file:
                is_dicom = file.read(132)[-4:] == b"DICM"
        except OSError:
            continue  # a broken link has no content to look at; beside other slices the reader notices it
        if not is_dicom:
            continue
        suspicious = True
        pydicom = _pydicom()
        try:
            tags = ["SeriesInstanceUID", "PatientID", "Rows"]
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags)
            if "Rows" in header:  # reports and structure sets have none
                patient = str(header.get("PatientID") or "")
                series.setdefault(str(header.SeriesInstanceUID), _short_hash(patient) if patient else "")
        except Exception:  # damaged in one of many ways: the reader of the series looks at it again and says so
            continue
    return series or ({_NO_SERIES: ""} if suspicious else {})


def _pydicom() -> ModuleType:
    try:
        import pydicom  # an extra: whoever has NIfTI does without
    except ImportError as error:
        raise ImportError("reading DICOM needs pydicom: pip install 'medical-diffusion-bundles[prepare]'") from error
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE  # quiet about what is checked later
    return pydicom


def _find_image_ids(root: Path) -> dict[str, list[Path]]:
    """Image id without its ``I`` -> a NIfTI file whose name ends in it, or else the folder of that name."""
    folders: dict[str, Path] = {}
    images: dict[str, list[Path]] = defaultdict(list)
    for path in _files_below(root):
        is_nifti = path.name.lower().endswith(NIFTI_SUFFIXES)
        if is_nifti and (match := _IMAGE_ID.search(path.name)):
            images[match[1]].append(path)
            continue
        for folder in path.relative_to(root).parents:
            if match := re.fullmatch(r"I(\d+)", folder.name):
                if is_nifti:
                    images[match[1]].append(path)
                else:
                    folders[str(root / folder)] = root / folder
                break
    for folder in folders.values():
        number = folder.name.lstrip("I")
        if number not in images:
            images[number].append(folder)
    return images


def _files_below(root: Path) -> Iterator[Path]:
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield from (Path(folder) / name for name in sorted(names) if not name.startswith("."))


def _checked_folder(raw_dir: str | os.PathLike) -> Path:
    root = Path(raw_dir).expanduser().resolve()
    if not root.is_dir():
        raise FileNotFoundError(f"raw_dir must be the folder of the raw data; there is no folder {root}")
    return root


def _stamp(folder: Path, files: list[Path]) -> list[int]:
    return [folder.stat().st_mtime_ns, len(files)]


def _read_index(index_file: str | os.PathLike | None, root: Path) -> dict:
    if index_file is None or not Path(index_file).is_file():
        return {}
    try:
        content = json.loads(Path(index_file).read_text())
    except ValueError:
        return {}  # what it held is in the raw folder
    return content["folders"] if content["raw_dir"] == _short_hash(str(root)) else {}


def _patient(pattern: str, inside: str) -> str:
    match = re.search(pattern, inside)
    if match is None or not match.groups() or not match[1]:
        raise ValueError(f"patient_pattern {pattern!r} finds no patient id (its first group) in {inside!r}")
    return match[1]


def _case_id(inside: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", inside.replace("/", "_")).strip("._-") or f"case_{_short_hash(inside)}"


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
