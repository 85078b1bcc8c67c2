"""What the files of a DICOM folder say about themselves, read strictly and without their pixels.

Values are parsed from the raw bytes of the elements rather than through pydicom's converters: those warn and
go on with a value that is out of its representation, whereas a header that decides where a voxel lies has to
be right or refused.

Source: DICOM PS3.3 (image plane, image pixel and modality LUT modules), PS3.5 (value representations), PS3.10
(files).
"""

from __future__ import annotations

import logging
import math
import os
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import pydicom
from pydicom.dataelem import RawDataElement

from medical_diffusion_components.dicom.objects import (
    DICOM_SUFFIXES,
    DIRECTORY,
    IMAGE,
    PHILIPS_CREATOR,
    PHILIPS_SCALE,
    hash_of_patient,
    is_dicom,
    kind_of,
    philips_scale,
    read_start,
    transfer_syntax,
)

__all__ = [
    "MAX_SIDE",
    "MIN_SLICES",
    "FolderScan",
    "SliceHeader",
    "header_of",
    "known",
    "quiet_pydicom",
    "read_header",
    "scan_files",
]

Known = TypeVar("Known")

MIN_SLICES = 3  # two slices cannot show whether one between them is missing
MAX_SIDE = 8192  # no scanner makes more rows or columns; a damaged header may claim up to 65,535
_NO_SUFFIX_NO_IMAGE = {"DICOMDIR", "README", "LICENSE", "LICENCE", "VERSION", "CHANGES", "LOCKFILE"}
_FOREIGN = (b"%PDF", b"PK\3\4", b"\x89PNG", b"\x1f\x8b")  # documents, archives and pictures are no lost slices
_DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


class SliceHeader(NamedTuple):
    """One single-slice image file. Lengths in mm, times in ms, positions in patient coordinates (LPS).

    ``problem`` says which required element is missing or malformed; the fields that depend on it are then
    ``None``. Witness fields (instance number, slice location, acquisition, ...) are ``None`` when absent or
    malformed: they are only used to doubt what the required ones say.
    """

    path: Path
    number: int  # place in the folder, by name, from 1: names of files may hold names of people
    size: int  # bytes
    problem: str | None
    transfer_syntax: str
    series_uid: str
    study_uid: str | None
    instance_uid: str | None
    sop_class: str | None
    frame_of_reference: str | None
    patient: str  # a hash: enough to see that two slices come from two patients
    modality: str | None
    rows: int
    columns: int
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    pixel_spacing: tuple[float, ...] | None  # between rows, between columns
    thickness: float | None
    spacing_between: float | None
    gantry_tilt: float | None  # degrees
    echo_time: float | None
    slope: float | None
    intercept: float | None
    rescale_type: str | None
    philips_scale: float | None  # stored numbers divided by it are comparable between slices
    bits: tuple[int, int, int, int] | None  # allocated, stored, high bit, pixel representation
    photometric: str | None
    samples: int | None
    frames: float | None
    padding: int | None
    padding_limit: int | None
    instance_number: float | None
    slice_location: float | None
    series_number: float | None
    acquisition: float | None
    echo_number: float | None
    temporal: float | None
    trigger_time: float | None
    image_type: str | None
    was_lossy: str | None
    burned_in: str | None
    has_lut: bool  # a table instead of slope and intercept


def known(value: Known | None) -> Known:
    """A field of a header that has no ``problem``, so that it is there.

    Raises:
        ValueError: it is not there.
    """
    if value is None:
        raise ValueError("expected a header without a problem, got one that lacks a required element")
    return value


class FolderScan(NamedTuple):
    """What lies below a folder: images' headers, the directory of each damaged file, a count of the rest."""

    headers: list[SliceHeader]
    damaged: list[Path]
    num_other: int


class _Damaged(Exception):
    """The file claims to be a DICOM image and cannot be used as one."""


def scan_files(place: str | Path | Iterable[Path]) -> FolderScan:
    """Read the headers of all image files below a folder, or of the files given.

    Hidden files, files that are no DICOM, and DICOM objects that are no images (reports, structure sets, a
    DICOMDIR) are counted. A file counts as damaged, not as foreign, if it is DICOM and its header is
    unreadable, or if it is no DICOM but is named like one (same suffix as the folder's images, or ``.dcm``,
    ``.ima``, ``.dicom``): leaving it out could silently shorten a series.

    Raises:
        FileNotFoundError: no such folder.
    """
    headers: list[SliceHeader] = []
    damaged: list[Path] = []
    no_dicom: list[tuple[Path, bytes]] = []
    num_other = 0
    with quiet_pydicom():
        for number, path in enumerate(_files_of(place), start=1):
            try:
                if path.name.startswith("."):
                    num_other += 1
                elif not is_dicom(start := read_start(path)):
                    no_dicom.append((path, start))
                elif (header := read_header(path, number)) is None:
                    num_other += 1
                else:
                    headers.append(header)
            except (_Damaged, OSError):
                damaged.append(path.parent)
    suffixes = DICOM_SUFFIXES | {_suffix(header.path) for header in headers}
    for path, start in no_dicom:
        named_like_one = _suffix(path) in suffixes and path.name.upper() not in _NO_SUFFIX_NO_IMAGE
        if named_like_one and not start.startswith(_FOREIGN):
            damaged.append(path.parent)
        else:
            num_other += 1
    return FolderScan(headers, damaged, num_other)


def read_header(path: Path, number: int) -> SliceHeader | None:
    """Header of one DICOM file, or ``None`` for a DICOM object that is no image."""
    try:
        # force: the 128 bytes and "DICM" in front may be missing
        dataset = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS.values()), force=True)
        return header_of(dataset, path, number)
    except Exception as error:  # pydicom raises whatever the damaged bytes lead it into
        raise _Damaged from error


def header_of(dataset: pydicom.FileDataset, path: Path, number: int) -> SliceHeader | None:
    """The header in a dataset already read; see :func:`read_header`."""
    parser = _Parser(dataset)
    rows, columns, sop_class = parser.unsigned("rows"), parser.unsigned("columns"), parser.uid("sop_class")
    stated = str(dataset.file_meta.get("MediaStorageSOPClassUID") or sop_class)
    kind = kind_of(stated, has_rows=rows is not None or columns is not None)
    # of two statements that differ one is damaged, and so may be a file that states it once; a DICOMDIR has one
    if kind == DIRECTORY or (sop_class == stated and kind not in (IMAGE, None)):
        return None
    series_uid = parser.uid("series_uid")
    if not rows or not columns or series_uid is None or parser.problem:
        raise _Damaged
    # in this order: of several things that are wrong, the first is the problem
    fields: dict[str, Any] = {
        "bits": parser.bits(),
        "samples": parser.unsigned("samples", required=True),
        "photometric": parser.text("photometric", required=True),
        "modality": parser.text("modality", required=True),
        "position": parser.decimals("position", 3),
        "orientation": parser.decimals("orientation", 6),
        "pixel_spacing": parser.decimals("pixel_spacing", 2),
        "padding": parser.padding("padding"),
        "padding_limit": parser.padding("padding_limit"),
        **{name: parser.uid(name) for name in ("study_uid", "instance_uid", "frame_of_reference")},
        **{name: parser.decimal(name, strict=True) for name in _OPTIONAL_DECIMALS},
        **{name: parser.decimal(name, strict=False) for name in _WITNESSES},
        **{name: parser.text(name) for name in ("image_type", "rescale_type", "was_lossy", "burned_in")},
    }
    return SliceHeader(
        path=path,
        number=number,
        size=path.stat().st_size,
        problem=parser.problem,
        transfer_syntax=transfer_syntax(dataset),
        series_uid=series_uid,
        sop_class=sop_class,
        patient=hash_of_patient((parser.raw("patient") or b"").decode("latin-1").strip("\0")),
        rows=rows,
        columns=columns,
        has_lut=_TAGS["lut"] in dataset,
        philips_scale=philips_scale(dataset),
        **fields,
    )


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Keep pydicom's remarks on sloppy files out of logs and warnings: what matters is refused here."""
    logger = logging.getLogger("pydicom")
    disabled = logger.disabled
    logger.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = disabled


_TAGS = {
    "image_type": 0x00080008,
    "sop_class": 0x00080016,
    "instance_uid": 0x00080018,
    "modality": 0x00080060,
    "patient": 0x00100020,
    "thickness": 0x00180050,
    "echo_time": 0x00180081,
    "echo_number": 0x00180086,
    "spacing_between": 0x00180088,
    "trigger_time": 0x00181060,
    "gantry_tilt": 0x00181120,
    "study_uid": 0x0020000D,
    "series_uid": 0x0020000E,
    "series_number": 0x00200011,
    "acquisition": 0x00200012,
    "instance_number": 0x00200013,
    "position": 0x00200032,
    "orientation": 0x00200037,
    "frame_of_reference": 0x00200052,
    "temporal": 0x00200100,
    "slice_location": 0x00201041,
    "samples": 0x00280002,
    "photometric": 0x00280004,
    "frames": 0x00280008,
    "rows": 0x00280010,
    "columns": 0x00280011,
    "pixel_spacing": 0x00280030,
    "bits_allocated": 0x00280100,
    "bits_stored": 0x00280101,
    "high_bit": 0x00280102,
    "representation": 0x00280103,
    "padding": 0x00280120,
    "padding_limit": 0x00280121,
    "burned_in": 0x00280301,
    "intercept": 0x00281052,
    "slope": 0x00281053,
    "rescale_type": 0x00281054,
    "was_lossy": 0x00282110,
    "lut": 0x00283000,
    "philips": PHILIPS_CREATOR,
    "philips_scale": PHILIPS_SCALE,
}
_KEYWORDS = {name: pydicom.datadict.keyword_for_tag(tag) for name, tag in _TAGS.items()}
_OPTIONAL_DECIMALS = ("thickness", "echo_time", "slope", "intercept", "frames", "gantry_tilt")
_WITNESSES = (
    *("spacing_between", "instance_number", "slice_location", "series_number"),
    *("acquisition", "echo_number", "temporal", "trigger_time"),
)


class _Parser:
    """Strict values from raw elements; the first thing wrong with them is kept in ``problem``."""

    def __init__(self, dataset: pydicom.Dataset) -> None:
        self.dataset = dataset
        self.problem: str | None = None

    def raw(self, name: str) -> bytes | None:
        element = self.dataset.get_item(_TAGS[name])
        if element is None or not element.value:
            return None
        if not isinstance(element, RawDataElement) or not isinstance(element.value, bytes):
            self._wrong(name, "is no plain value")
            return None
        return element.value

    def text(self, name: str, required: bool = False) -> str | None:
        raw = self.raw(name)
        text = raw.decode("ascii", "replace").strip(" \0") if raw else ""
        if required and not text:
            self._wrong(name, "is missing")
        return text or None

    def uid(self, name: str) -> str | None:
        text = self.text(name)
        if text is not None and not re.fullmatch(r"[!-~]{1,64}", text):
            self._wrong(name, "is no UID")
            return None
        return text

    def unsigned(self, name: str, required: bool = False) -> int | None:
        raw = self.raw(name)
        if raw is None:
            if required:
                self._wrong(name, "is missing")
            return None
        return self._two_bytes(name, raw, signed=False)

    def bits(self) -> tuple[int, int, int, int] | None:
        names = ("bits_allocated", "bits_stored", "high_bit", "representation")
        allocated, stored, high_bit, representation = (self.unsigned(name, required=True) for name in names)
        if allocated is None or stored is None or high_bit is None or representation is None:
            return None
        return allocated, stored, high_bit, representation

    def padding(self, name: str) -> int | None:
        raw = self.raw(name)
        representation = self.unsigned("representation")
        if raw is None or representation is None:
            return None
        return self._two_bytes(name, raw, signed=representation == 1)

    def decimals(self, name: str, count: int) -> tuple[float, ...] | None:
        text = self.text(name)
        if text is None:
            self._wrong(name, "is missing")
            return None
        parts = text.split("\\")
        values = [value for part in parts if (value := _decimal(part)) is not None]
        if not len(values) == len(parts) == count:
            self._wrong(name, f"is not {count} decimal numbers")
            return None
        return tuple(values)

    def decimal(self, name: str, strict: bool) -> float | None:
        text = self.text(name)
        if text is None:
            return None
        value = _decimal(text)
        if value is None and strict:
            self._wrong(name, "is no decimal number")
        return value

    def _two_bytes(self, name: str, raw: bytes, signed: bool) -> int | None:
        if len(raw) != 2:
            self._wrong(name, f"has {len(raw)} bytes, expected 2")
            return None
        element = self.dataset.get_item(_TAGS[name])
        assert isinstance(element, RawDataElement), "raw() gives the bytes of no other"
        order: Literal["little", "big"] = "little" if element.is_little_endian else "big"
        return int.from_bytes(raw, order, signed=signed)

    def _wrong(self, name: str, what: str) -> None:
        self.problem = self.problem or f"{_KEYWORDS[name]} {what}"


def _decimal(text: str) -> float | None:
    text = text.strip(" ")
    if not _DECIMAL.fullmatch(text) or not math.isfinite(float(text)):
        return None
    return float(text)


def _suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    return "" if suffix[1:].isdigit() else suffix  # files named by their UIDs, or IM.0001


def _files_of(place: str | Path | Iterable[Path]) -> list[Path]:
    if not isinstance(place, (str, Path)):
        return sorted(place)
    folder = Path(place)
    if not folder.is_dir():
        raise FileNotFoundError(f"no DICOM folder {folder}")
    below = [Path(root) / name for root, _, names in os.walk(folder) for name in names]
    return sorted(path for path in below if path.is_file() or not path.exists())  # a dangling link is a lost slice
