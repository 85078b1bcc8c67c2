"""What a file is to DICOM: an image, an object without one, or no DICOM at all.

Files are recognised by their content. The 128 bytes and "DICM" in front of the header may be missing, as in files from
older scanners and planning systems; such a file begins with an element of the groups 0002 or 0008.

Source: DICOM PS3.10 section 7 (files), PS3.5 annex A (transfer syntaxes), PS3.4 annex B (storage classes).
"""

from __future__ import annotations

import hashlib
import math
import re
import struct
from pathlib import Path
from typing import NamedTuple

import pydicom
from pydicom.dataelem import RawDataElement
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
    SecondaryCaptureImageStorage,
)

__all__ = [
    "DICOM_SUFFIXES",
    "DIRECTORY",
    "IMAGE",
    "PHILIPS_CREATOR",
    "PHILIPS_SCALE",
    "DicomObject",
    "has_preamble",
    "hash_of_patient",
    "identify",
    "is_dicom",
    "is_image_class",
    "kind_of",
    "philips_scale",
    "read_start",
    "starts_with_element",
    "transfer_syntax",
]

DICOM_SUFFIXES = frozenset({".dcm", ".dicom", ".ima"})
IMAGE = "image"
DIRECTORY = "DICOMDIR"
PHILIPS_CREATOR, PHILIPS_SCALE = 0x20050010, 0x2005100E  # private: by whom, and the scale slope
SECONDARY_CAPTURE = "secondary capture"  # a screenshot: an image without a place in the patient
_STANDARD_STORAGE = "1.2.840.10008.5.1.4.1.1."
_MAGIC_END = 132  # preamble of 128 bytes, then "DICM"
# elements that a file may begin with: group length, character set, image type, classes and instances
_FIRST_ELEMENTS = {2: {0, 1, 2, 3}, 8: {0, 1, 5, 6, 8, 0x12, 0x13, 0x14, 0x16, 0x18, 0x20}}
# value representations that an element of those groups may have
_VRS = {b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"IS", b"LO", b"LT", b"OB", b"OW", b"PN", b"SH", b"SL", b"SQ"}
_VRS |= {b"SS", b"ST", b"TM", b"UI", b"UL", b"UN", b"US", b"UT", b"UC", b"UR"}
# words of an image type that say that the file is no slice of a volume
_SPECIAL = {"MOSAIC": "mosaic", "LOCALIZER": "localiser"}
_TAGS = {
    "image_type": 0x00080008,
    "sop_class": 0x00080016,
    "instance_uid": 0x00080018,
    "modality": 0x00080060,
    "name": 0x00100010,
    "patient": 0x00100020,
    "born": 0x00100030,
    "study_uid": 0x0020000D,
    "series_uid": 0x0020000E,
    "position": 0x00200032,
    "frame_of_reference": 0x00200052,
    "frames": 0x00280008,
    "rows": 0x00280010,
}


class DicomObject(NamedTuple):
    """One DICOM file.

    ``kind`` is ``"image"``, ``"DICOMDIR"``, ``"secondary capture"``, or the name of an object without an image. The
    others are empty where the header is silent; ``patient``, ``person`` (name with date of birth), ``space`` (the frame of
    reference) and ``instance`` are hashes, ``frames`` is 1 unless the header says otherwise. ``special`` is ``"localiser"``
    or ``"mosaic"`` where the image type says so. ``spelling`` is as ``patient``, with leading zeros left out.
    """

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


def is_dicom(start: bytes) -> bool:
    """Whether a file that starts with these (132 or more) bytes is DICOM, with or without its preamble."""
    return start[128:_MAGIC_END] == b"DICM" or starts_with_element(start)


def starts_with_element(start: bytes) -> bool:
    """Whether the bytes begin with an element of group 0002 or 0008, as a file without preamble does."""
    if len(start) < _MAGIC_END:
        return False
    for order in ("little", "big"):
        group, element = (int.from_bytes(start[k : k + 2], order) for k in (0, 2))
        if element in _FIRST_ELEMENTS.get(group, ()):
            length = int.from_bytes(start[4:8], order)  # of an implicit element
            return start[4:6] in _VRS or (order == "little" and length <= 256)
    return False


def read_start(path: Path) -> bytes:
    """The first bytes of a file, for :func:`is_dicom`."""
    with path.open("rb") as file:
        return file.read(_MAGIC_END)


def has_preamble(start: bytes) -> bool:
    """Whether "DICM" is where the standard wants it."""
    return start[128:_MAGIC_END] == b"DICM"


def transfer_syntax(dataset: pydicom.FileDataset) -> str:
    """What the file says, or, where it has no file meta information, what its elements are written in."""
    if stated := dataset.file_meta.get("TransferSyntaxUID"):
        return str(stated)
    implicit, little = dataset.original_encoding
    if implicit:
        return str(ImplicitVRLittleEndian)
    return str(ExplicitVRLittleEndian if little else ExplicitVRBigEndian)


def is_image_class(sop_class: str) -> bool:
    """Whether an object of this class ought to have rows and columns; private classes need not."""
    name = pydicom.uid.UID(sop_class).name
    return sop_class.startswith(_STANDARD_STORAGE) and ("Image Storage" in name or name == sop_class)


def identify(path: Path) -> DicomObject:
    """What a DICOM file holds, from its header.

    Raises:
        Exception: of any kind, by pydicom, if the header is damaged; ValueError if it names no series.
    """
    dataset = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS.values()), force=True)
    values = {name: _text(dataset.get_item(tag).value) for name, tag in _TAGS.items() if tag in dataset}
    sop_class = values.get("sop_class") or str(dataset.file_meta.get("MediaStorageSOPClassUID", ""))
    kind = kind_of(sop_class, has_rows="rows" in values)
    if kind is None or (kind == IMAGE and "series_uid" not in values):
        raise ValueError("the header is damaged: it names neither an image nor an object without one")
    if kind == IMAGE and sop_class == SecondaryCaptureImageStorage and "position" not in values:
        kind = SECONDARY_CAPTURE
    return DicomObject(
        kind,
        values.get("series_uid", ""),
        values.get("study_uid", ""),
        hash_of_patient(values.get("patient", "")),
        _short_hash(values.get("instance_uid", "")),
        values.get("modality", ""),
        int(values["frames"]) if values.get("frames", "").isdecimal() else 1,
        _person(values.get("name", ""), values.get("born", "")),
        _short_hash(values.get("frame_of_reference", "")),
        next((kind for word, kind in _SPECIAL.items() if word in values.get("image_type", "").upper()), ""),
        hash_of_patient(re.sub(r"(?<!\d)0+(?=\d)", "", values.get("patient", ""))),
    )


def philips_scale(dataset: pydicom.Dataset) -> float | None:
    """The scale slope that Philips scanners add to slope and intercept; None where there is none, or no positive number.

    Source: Chenevert et al., "Errors in quantitative image analysis due to platform-dependent image scaling",
    Translational Oncology 7, 65-71 (2014): real values are ``(stored * slope + intercept) / (slope * scale)``.
    """
    creator, element = (dataset.get_item(tag) for tag in (PHILIPS_CREATOR, PHILIPS_SCALE))
    if creator is None or element is None or not _text(creator.value).startswith("Philips MR Imaging DD"):
        return None
    raw = element.value
    if not isinstance(element, RawDataElement) or not isinstance(raw, bytes) or len(raw) != 4:
        return None
    (value,) = struct.unpack("<f" if element.is_little_endian else ">f", raw)
    return value if math.isfinite(value) and value > 0 else None


def hash_of_patient(patient: str) -> str:
    """Hash of a PatientID in which upper and lower case, and blanks, count for nothing; empty for an empty one.

    ``"P 1"``, ``"p1"`` and ``"P1 "`` are typed by different hands for one patient. That two patients differ in nothing else
    is less likely, and joining them harms less than parting one.
    """
    return _short_hash(re.sub(r"\s", "", patient).casefold())


def kind_of(sop_class: str, has_rows: bool) -> str | None:
    """Kind of an object by its class; None if a class of images comes without rows, or nothing with nothing."""
    if sop_class == MediaStorageDirectoryStorage:
        return DIRECTORY
    name = pydicom.uid.UID(sop_class).name
    if sop_class.startswith("1.2.840.10008.") and name != sop_class and not is_image_class(sop_class):
        return name.removesuffix(" Storage")
    if has_rows:
        return IMAGE
    return "private object" if sop_class and not sop_class.startswith("1.2.840.10008.") else None


def _text(value: object) -> str:
    """A value of an element as the file has it: names in any character set are only compared."""
    return value.decode("latin-1").strip(" \0") if isinstance(value, bytes) else str(value or "").strip()


def _person(name: str, born: str) -> str:
    """Hash of a name with a date of birth, or empty where one of them is."""
    letters = re.sub(r"[\s^]", "", name).casefold()
    return _short_hash(f"{letters} {born}") if letters and born else ""


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:12] if text else ""
