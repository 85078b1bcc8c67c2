"""Formats of volumes by the ends of files' names, and why a file is no scan."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Sequence
from pathlib import Path

__all__ = ["VOLUME_ENDING", "kind_of_volume", "remark_on_maps", "voxel_files", "why_no_scan", "why_no_volume"]

# formats of whole volumes, by the end of the name
VOLUMES = {
    ".nii": "NIfTI",
    ".nii.gz": "NIfTI",
    ".hdr": "NIfTI pair",
    ".nrrd": "NRRD",
    ".nhdr": "NRRD",
    ".mha": "MetaImage",
    ".mhd": "MetaImage",
    ".npy": "array",
}
_VOXELS_OF = {".hdr": (".img", ".img.gz"), ".mhd": (".raw", ".zraw", ".raw.gz"), ".nhdr": (".raw", ".raw.gz")}
_ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".7z", ".rar", ".bz2", ".xz", ".gz")
_NOT_READ = (
    ".mgz",
    ".mgh",
    ".mnc",
    ".par",
    ".rec",
    ".img",
    ".tif",
    ".tiff",
    ".h5",
    ".hdf5",
    ".mat",
    ".npz",
    ".gipl",
    ".vtk",
)
_UNFINISHED = (".part", ".partial", ".crdownload", ".download", ".filepart", ".tmp", ".!ut", ".aria2", ".icloud")
_INSTEAD = {  # how a file begins that a download left in the place of a volume
    b"version https://git-lfs": "a pointer of Git LFS, not the file: fetch it (git lfs pull)",
    b"/annex/objects/": "a pointer of git-annex, not the file: fetch it (datalad get)",
    b"<!doctype": "a web page, not a scan: the server asked to log in, or had no such file",
    b"<html": "a web page, not a scan: the server asked to log in, or had no such file",
}
_GZIP = b"\x1f\x8b"
_NIFTI_HEADER = 348  # bytes, with the mark of the format within
_OF_A_MAP = re.compile(
    r"(?:^|[-_ ])(adc|fa|md|ad|rd|cbf|cbv|mtt|t[12](?:star)?map|b[01]map|fieldmap|phase(?:diff)?|mip|minip|scout"
    r"|locali[sz]er|survey)$|part-(?:phase|real|imag)",
    re.IGNORECASE,
)
VOLUME_ENDING = r"(\.nii)?\.gz$|\.(nii|npy|nrrd|nhdr|mha|mhd|hdr)$"  # of a name in any case


def kind_of_volume(path: Path) -> str | None:
    """The format of a file that is a whole volume by its name, or None."""
    name = path.name.lower()
    ending = next((ending for ending in VOLUMES if name.endswith(ending)), None)
    if ending == ".hdr" and not voxel_files(path):
        return None
    return None if ending is None else VOLUMES[ending]


def voxel_files(path: Path) -> list[Path]:
    """The files that hold the voxels of a header's file (``a.img`` of ``a.hdr``)."""
    ends = _VOXELS_OF.get(path.suffix.lower(), ())
    if not ends:
        return []
    wanted = {path.stem.lower() + end for end in ends}
    return sorted(other for other in path.parent.iterdir() if other.name.lower() in wanted)


def holds_nifti(path: Path) -> bool:
    """Whether a file begins like NIfTI in one file, compressed or not, whatever its name is."""
    try:
        with path.open("rb") as file:
            start = file.read(_NIFTI_HEADER)
        if start[:2] == _GZIP:
            with gzip.open(path) as unpacked:
                start = unpacked.read(_NIFTI_HEADER)
    except (OSError, EOFError, zlib.error):
        return False  # unreadable, or no gzip after all
    return start[344:348] == b"n+1\0" or start[4:8] == b"n+2\0"


def why_no_volume(path: Path) -> str | None:
    """What lies in the place of a volume's file: a pointer, a web page, nothing; None if it may be a volume.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(64).lstrip().lower()
    if not start:
        return "the file is empty"
    return next((what for beginning, what in _INSTEAD.items() if start.startswith(beginning)), None)


def why_no_scan(path: Path) -> str:
    """The reason for which a file that is no volume and no DICOM is left aside."""
    name = path.name.lower()
    if name.endswith(_UNFINISHED):
        return "unfinished download"
    if holds_nifti(path):
        return "NIfTI by its content, not by its name: rename it to .nii or .nii.gz"
    if name.endswith(".hdr") and path.stat().st_size == _NIFTI_HEADER:
        return "header whose voxels (.img) are not there"
    if name.endswith(_ARCHIVES):
        return "archive, not opened"
    if name.endswith(_NOT_READ):
        return f"format that is not read ({path.suffix.lower()})"
    return "other file (text, table, picture)"


def remark_on_maps(scans: Sequence[str]) -> list[str]:
    """A remark on scans whose names end like those of computed maps and scouts; they are made: a name proves nothing.

    Args:
        scans: paths of all scans. If all are named so, they are what is wanted.
    """
    named = [inside for inside in scans if _OF_A_MAP.search(Path(inside).name.split(".")[0])]
    if not named or len(named) == len(scans):
        return []
    return [
        f"{len(named)} scans are named like computed maps or scouts (the first is {named[0]}): if they are, move them "
        "out of the folder"
    ]
