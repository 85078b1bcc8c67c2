"""Malformed DICOM folders made from a whole one: what storage, networks and careless tools do to a download."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom

PIXEL_DATA = {True: b"\xe0\x7f\x10\x00", False: b"\x7f\xe0\x00\x10"}  # is little endian -> tag


def malformed_copy(source: Path, target: Path, rng: np.random.Generator) -> str:
    """Copy the series in ``source`` to ``target``, damage the copy in one random way, and say which."""
    shutil.copytree(source, target)
    files = sorted(target.iterdir())
    ends = [files[0], files[-1]]  # a lost first or last slice is the hardest to notice
    file = ends[rng.integers(2)] if rng.random() < 0.4 else files[rng.integers(len(files))]
    damage = DAMAGES[rng.integers(len(DAMAGES))]
    return f"{damage.__name__}, {file.name}: {damage(file, rng)}"


def truncate(file: Path, rng: np.random.Generator) -> str:
    content = file.read_bytes()
    length = int(rng.integers(len(content)))
    file.write_bytes(content[:length])
    return f"{length} of {len(content)} bytes"


def empty(file: Path, rng: np.random.Generator) -> str:
    file.write_bytes(b"")
    return "no bytes"


def flip_bits(file: Path, rng: np.random.Generator) -> str:
    """Flip up to four bits of the header; nothing in a file guards the pixels themselves."""
    content = bytearray(file.read_bytes())
    bits = rng.integers(128 * 8, header_length(file) * 8, size=rng.integers(1, 5))
    for bit in bits:
        content[bit // 8] ^= 1 << (bit % 8)
    file.write_bytes(content)
    return f"bits {bits.tolist()}"


def overwrite_block(file: Path, rng: np.random.Generator) -> str:
    """A block of the header replaced, as by a bad sector."""
    content = bytearray(file.read_bytes())
    start = int(rng.integers(header_length(file)))
    length = min(int(rng.integers(1, 200)), header_length(file) - start)
    content[start : start + length] = rng.bytes(length) if rng.random() < 0.5 else bytes(length)
    file.write_bytes(content)
    return f"{length} bytes from {start}"


def wrong_tag(file: Path, rng: np.random.Generator) -> str:
    dataset = pydicom.dcmread(file)
    keyword, value = WRONG_VALUES[rng.integers(len(WRONG_VALUES))]
    dataset.add_new(keyword, pydicom.datadict.dictionary_VR(keyword), value)
    dataset.save_as(file)
    return f"{keyword} = {value!r}"


def missing_tag(file: Path, rng: np.random.Generator) -> str:
    dataset = pydicom.dcmread(file)
    tag = list(dataset.keys())[rng.integers(len(dataset))]
    del dataset[tag]
    dataset.save_as(file)
    return str(tag)


def foreign_file(file: Path, rng: np.random.Generator) -> str:
    name = ("notes.txt", "DICOMDIR", "preview.png", "other.dcm", "README", ".DS_Store", "lost.ima")[rng.integers(7)]
    length = int(rng.integers(0, 3000))
    (file.parent / name).write_bytes(rng.bytes(length))
    return f"{name} of {length} bytes"


def not_dicom(file: Path, rng: np.random.Generator) -> str:
    file.write_bytes(b"<html><body>503 Service Unavailable</body></html>" if rng.random() < 0.5 else rng.bytes(999))
    return "other content"


def duplicate(file: Path, rng: np.random.Generator) -> str:
    shutil.copy(file, file.parent / "copy.dcm")
    return "copied beside itself"


def longer_or_shorter_pixels(file: Path, rng: np.random.Generator) -> str:
    dataset = pydicom.dcmread(file)
    change = int(rng.choice([-64, -2, 2, 10, 512]))
    dataset.PixelData = dataset.PixelData + bytes(change) if change > 0 else dataset.PixelData[:change]
    dataset.save_as(file)
    return f"{change} bytes"


def header_length(file: Path) -> int:
    """Bytes before the value of the pixel data."""
    is_implicit, is_little = pydicom.dcmread(file, stop_before_pixels=True).original_encoding
    return file.read_bytes().rindex(PIXEL_DATA[is_little]) + (8 if is_implicit else 12)


DAMAGES: list[Callable[[Path, np.random.Generator], str]] = [
    truncate,
    empty,
    flip_bits,
    flip_bits,
    flip_bits,
    overwrite_block,
    wrong_tag,
    wrong_tag,
    missing_tag,
    foreign_file,
    not_dicom,
    duplicate,
    longer_or_shorter_pixels,
]
WRONG_VALUES = [
    ("Rows", 7),
    ("Rows", 0),
    ("Rows", 65535),
    ("Columns", 9),
    ("BitsAllocated", 8),
    ("BitsAllocated", 32),
    ("BitsStored", 12),
    ("BitsStored", 0),
    ("HighBit", 11),
    ("PixelRepresentation", 0),
    ("PixelRepresentation", 7),
    ("SamplesPerPixel", 3),
    ("PhotometricInterpretation", "MONOCHROME1"),
    ("NumberOfFrames", 4),
    ("ImagePositionPatient", [0, 0, 0]),
    ("ImagePositionPatient", [1e9, -1e9, 1e300]),
    ("ImagePositionPatient", [1, 2]),
    ("ImageOrientationPatient", [0, 1, 0, 1, 0, 0]),
    ("ImageOrientationPatient", [1, 0, 0, 1, 0, 0]),
    ("ImageOrientationPatient", [0] * 6),
    ("PixelSpacing", [1, 1]),
    ("PixelSpacing", [0, 0]),
    ("PixelSpacing", [-0.5, 0.5]),
    ("SliceThickness", -3),
    ("RescaleSlope", 0),
    ("RescaleSlope", 2),
    ("RescaleSlope", 1e30),
    ("RescaleIntercept", -1024.5),
    ("SeriesInstanceUID", "1.2.3"),
    ("StudyInstanceUID", "1.2.3"),
    ("FrameOfReferenceUID", "1.2.3"),
    ("SOPClassUID", "1.2.840.10008.5.1.4.1.1.88.11"),
    ("SOPInstanceUID", ""),
    ("Modality", "MR"),
    ("Modality", ""),
    ("PatientID", "SOMEONE ELSE"),
    ("InstanceNumber", 4000),
    ("InstanceNumber", -1),
    ("EchoTime", 5),
    ("GantryDetectorTilt", 12),
    ("ImageType", ["DERIVED", "SECONDARY", "LOCALIZER"]),
    ("AcquisitionNumber", 9),
]
