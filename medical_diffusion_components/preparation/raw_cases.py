"""Where the scans of a download lie: the cases of a manifest, or of a folder without one."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from medical_diffusion_components.data.datalists import NIFTI_SUFFIXES
from medical_diffusion_components.data.splits import spelling
from medical_diffusion_components.preparation.bids import entities_of
from medical_diffusion_components.preparation.dicom_index import IndexedFile
from medical_diffusion_components.preparation.inventory import (
    Inventory,
    RawCase,
    Selection,
    sort_files,
    take_inventory,
)
from medical_diffusion_components.preparation.manifests import Manifest
from medical_diffusion_components.preparation.patients import PLACEHOLDERS
from medical_diffusion_components.preparation.steps.load_scan import RawScan

__all__ = ["RawCase", "cases_of_folder", "cases_of_manifest", "inventory_of_manifest"]

_IMAGE_ID = re.compile(r"(?:^|_)I(\d+)(?i:\.nii|\.nii\.gz)?$")
_NOT_WANTED = "in no case of the manifest"


def cases_of_folder(
    raw_dir: str | os.PathLike, patient_pattern: str | None = None, index_file: str | os.PathLike | None = None
) -> list[RawCase]:
    """The scans of a folder; see :func:`~medical_diffusion_components.preparation.inventory.take_inventory`."""
    return take_inventory(raw_dir, Selection(patient_pattern), index_file).cases


def cases_of_manifest(
    manifest: Manifest, raw_dir: str | os.PathLike, index_file: str | os.PathLike | None = None
) -> list[RawCase]:
    """The scans of a manifest; see :func:`inventory_of_manifest`."""
    return inventory_of_manifest(manifest, raw_dir, index_file).cases


def inventory_of_manifest(
    manifest: Manifest, raw_dir: str | os.PathLike, index_file: str | os.PathLike | None = None
) -> Inventory:
    """Find the scan of each case of a manifest, and account for every other file.

    A ``path`` is relative to ``raw_dir``; a ``series_uid`` is looked up in the headers of all DICOM files below it; an
    ``image_id`` is the name of a folder (``I12345``) or the end of a file's name (``..._I12345.nii``).

    Args:
        manifest: which cases there are.
        raw_dir: the download.
        index_file: see :func:`~medical_diffusion_components.preparation.dicom_index.index_dicom`.

    Raises:
        FileNotFoundError: no such folder, or it holds none of the cases.
    """
    kinds = {kind for case in manifest.cases for kind in ("series_uid", "image_id") if kind in case["source"]}
    inventory, files, index = sort_files(raw_dir, index_file, headers="series_uid" in kinds)
    root = inventory.root
    beside: dict[Path, list[str]] = defaultdict(list)
    series: dict[str, list[IndexedFile]] = defaultdict(list)
    for path, record in index.items():
        beside[path.parent].append(str(path))
        if record.series_uid:
            series[record.series_uid].append(record)
    images = _find_image_ids(root, files) if "image_id" in kinds else {}
    inventory.cases = [_case_of_manifest(case, root, series, beside, images) for case in manifest.cases]
    found = [case for case in inventory.cases if case.scan]
    if not found:
        raise FileNotFoundError(
            f"none of the {len(inventory.cases)} cases of {manifest.metadata['name']} is in {root}: "
            f"{inventory.cases[0].absent}; give the folder of the raw download as raw_dir, or leave the manifest out "
            "(--manifest none) for data of your own"
        )
    _check_signs(inventory, found, series)
    inventory.decided_by = {"the manifest": len({case.patient_id for case in found})}
    _account(inventory, found, files, series)
    return inventory


def _check_signs(inventory: Inventory, found: Sequence[RawCase], series: Mapping[str, list[IndexedFile]]) -> None:
    """Refuse a manifest that puts scans into different splits that share a study, a PatientID or a subject of BIDS.

    A PatientID that reads like none, or that all scans share, tells nothing of patients; it is remarked on.
    """
    signs = [_signs_of(case, inventory.root, series) for case in found]
    ids = {value for own in signs for kind, value in own if kind == "PatientID"}
    first: dict[tuple[str, str], RawCase] = {}
    for case, own in zip(found, signs):
        for kind, value in sorted(own):
            if kind == "PatientID" and (value in PLACEHOLDERS or len(ids) == 1):
                continue
            other = first.setdefault((kind, value), case)
            if other.split != case.split:
                raise ValueError(
                    f"{other.case_id} ({other.split}) and {case.case_id} ({case.split}) are of one {kind}, that is of one "
                    "patient: the manifest must put them into one split"
                )
    if len(ids) == 1 and len({case.patient_id for case in found}) > 1:
        inventory.remarks.append(
            "all DICOM series bear one PatientID, though the manifest knows several patients: whose scan is whose was not "
            "checked"
        )


def _signs_of(case: RawCase, root: Path, series: Mapping[str, list[IndexedFile]]) -> set[tuple[str, str]]:
    """What tells whose scan a case is: kind and value."""
    records = series.get(case.found.series_uid or "", ())
    signs = {("study", record.study_uid) for record in records} | {("PatientID", record.spelling) for record in records}
    subject = entities_of(Path(os.path.relpath(case.found.path, root)).as_posix()).subject
    signs.add(("subject", spelling(subject)))
    return {(kind, value) for kind, value in signs if value}


def _account(
    inventory: Inventory, found: Sequence[RawCase], files: Iterable[Path], series: Mapping[str, list[IndexedFile]]
) -> None:
    """Say of each file to which case it belongs, or that no case wants it."""
    root = inventory.root
    left = {path.relative_to(root).as_posix() for path in files} - {f for fs in inventory.aside.values() for f in fs}
    by_folder: dict[str, str] = {}
    for case in found:
        place = os.path.relpath(case.found.path, root).replace(os.sep, "/")
        own = []
        if case.found.series_uid:
            own = [record.path.relative_to(root).as_posix() for record in series[case.found.series_uid]]
        elif place in left:
            own = [place]
        else:
            by_folder[place] = case.case_id
        inventory.files_of[case.case_id] = [name for name in own if name in left]
        left -= set(own)
    for name in sorted(left):
        owner = next((by_folder[str(p)] for p in Path(name).parents if str(p) in by_folder), None)
        if owner is not None:
            inventory.files_of[owner].append(name)
        else:
            inventory.aside[_NOT_WANTED].append(name)


def _case_of_manifest(
    case: Mapping,
    root: Path,
    series: Mapping[str, list[IndexedFile]],
    beside: Mapping[Path, list[str]],
    images: Mapping[str, list[Path]],
) -> RawCase:
    source = case["source"]
    names = (case["case_id"], case["patient_id"], case["split"])
    if "series_uid" in source:
        return _case_of_series(names, source, root, series, beside)
    if "path" in source:
        wanted, places = f"expected {source['path']}", [root / source["path"]]
        places = [place for place in places if place.exists()]
    else:
        wanted = f"expected image {source['image_id']}"
        places = images.get(source["image_id"].lstrip("I"), [])
    if not places:
        return RawCase(*names, None, f"{wanted}, which is not in the raw folder")
    if len(places) > 1:
        inside = ", ".join(place.relative_to(root).as_posix() for place in places[:4])
        return RawCase(*names, None, f"{wanted} in one place, found it in {len(places)}: {inside}")
    return RawCase(*names, RawScan(str(places[0]), None, source.get("num_images")))


def _case_of_series(
    names: tuple[str, str, str],
    source: Mapping,
    root: Path,
    series: Mapping[str, list[IndexedFile]],
    beside: Mapping[Path, list[str]],
) -> RawCase:
    """A series whose slices lie in one folder, or, each of them once, in several."""
    uid = source["series_uid"]
    slices = series.get(uid, [])
    if not slices:
        return RawCase(*names, None, f"expected DICOM series {uid}, which is not in the raw folder")
    folders = sorted({record.path.parent for record in slices})
    instances = [record.instance for record in slices]
    if len(folders) > 1 and len(set(instances)) < len(instances):
        inside = ", ".join(folder.relative_to(root).as_posix() for folder in folders[:4])
        text = f"expected DICOM series {uid} in one place, found it in {len(folders)}: {inside}"
        return RawCase(*names, None, text)
    files = tuple(path for folder in folders for path in beside[folder])
    return RawCase(*names, RawScan(os.path.commonpath(folders), uid, source.get("num_images"), files))


def _find_image_ids(root: Path, files: Iterable[Path]) -> dict[str, list[Path]]:
    """Image id without its ``I`` -> a NIfTI file whose name ends in it, or else the folder of that name."""
    folders: dict[str, Path] = {}
    images: dict[str, list[Path]] = defaultdict(list)
    for path in files:
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
