"""Stored pixels of one DICOM slice, decoded without loss or refused.

Uncompressed pixels are taken from the bytes themselves, RLE is decoded by pydicom, lossless JPEG, JPEG-LS and
JPEG 2000 by ITK. Lossy syntaxes are refused: what comes out depends on the decoder, and is not what the
scanner stored.

Source: DICOM PS3.5 section 8 (encoding of pixel data) and annex A (transfer syntaxes).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataelem import RawDataElement
from pydicom.pixels import get_decoder
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from medical_diffusion_components.dicom.headers import MAX_SIDE, SliceHeader, header_of, known, quiet_pydicom
from medical_diffusion_components.dicom.itk_decoder import decode_apart, has_itk
from medical_diffusion_components.dicom.refusal import Refusal, SeriesRefused

__all__ = ["check_pixel_format", "read_stored_slices"]

_UNCOMPRESSED = {ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian}
_DEFLATED = {DeflatedExplicitVRLittleEndian}
_ITK = {JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless}
_READABLE = _UNCOMPRESSED | _DEFLATED | _ITK | {RLELossless}
_PIXEL_DATA = 0x7FE00010
_BATCH = 128  # slices at a time that lie decoded on the disk
_UNDECODABLE = "the pixel data of a file cannot be decoded"


def check_pixel_format(header: SliceHeader) -> None:
    """Refuse, from the header alone, what :func:`read_stored_slices` could not read.

    Raises:
        SeriesRefused: colour, inverted grey scale, a table instead of slope and intercept, odd bit layouts, compression
            without a lossless decoder, or a file too small for its rows and columns.
    """
    if header.samples != 1 or header.photometric != "MONOCHROME2":
        raise SeriesRefused(
            Refusal.UNSUPPORTED_PIXELS,
            f"expected one MONOCHROME2 sample a pixel, got {header.samples} of {header.photometric}",
        )
    if header.has_lut:
        raise SeriesRefused(
            Refusal.UNSUPPORTED_PIXELS,
            "expected RescaleSlope and RescaleIntercept, got a table of values (ModalityLUTSequence)",
        )
    allocated, stored, high_bit, representation = known(header.bits)
    if allocated not in (8, 16) or not 0 < stored <= allocated or high_bit != stored - 1 or representation > 1:
        raise SeriesRefused(
            Refusal.UNSUPPORTED_PIXELS,
            "expected 8 or 16 bits allocated, the high bit one below the bits stored, and representation 0 "
            f"or 1, got BitsAllocated {allocated}, BitsStored {stored}, HighBit {high_bit}, "
            f"PixelRepresentation {representation}",
        )
    if max(header.rows, header.columns) > MAX_SIDE:
        raise SeriesRefused(
            Refusal.UNSUPPORTED_PIXELS,
            f"expected sides up to {MAX_SIDE}, got {header.rows} x {header.columns}",
        )
    if header.transfer_syntax not in _READABLE:
        name = _syntax_name(header)
        raise SeriesRefused(
            Refusal.UNSUPPORTED_COMPRESSION,
            f"expected no compression, or lossless RLE, JPEG, JPEG-LS or JPEG 2000, got {name}",
        )
    if header.transfer_syntax in _UNCOMPRESSED and header.size < _num_bytes(header):
        raise SeriesRefused(
            Refusal.DAMAGED_PIXELS,
            f"{header.rows} x {header.columns} pixels need {_num_bytes(header)} bytes, "
            f"the whole file has {header.size}",
        )


def read_stored_slices(headers: Sequence[SliceHeader]) -> Iterator[np.ndarray]:
    """Stored values of slices whose headers passed :func:`check_pixel_format`, before slope and intercept.

    Shape: each ``(rows, columns)``, integers.

    Raises:
        SeriesRefused: a file changed since its header was read, or its pixels are cut short or damaged.
    """
    for start in range(0, len(headers), _BATCH):
        batch = headers[start : start + _BATCH]
        with tempfile.TemporaryDirectory() as folder:
            _decode_with_itk([header for header in batch if header.transfer_syntax in _ITK], Path(folder))
            for header in batch:
                yield _read_stored_pixels(header, Path(folder))


def _read_stored_pixels(header: SliceHeader, decoded: Path) -> np.ndarray:
    try:
        if header.transfer_syntax in _ITK:
            stored = np.load(decoded / f"{header.number}.npy", allow_pickle=False)
        elif header.transfer_syntax == RLELossless:
            with quiet_pydicom():
                stored = get_decoder(RLELossless).as_array(_read_unchanged(header), raw=True)[0]
        else:
            stored = _from_bytes(_read_unchanged(header), header)
    except SeriesRefused:
        raise
    except Exception as error:  # pydicom raises whatever the damaged bytes lead it into
        raise SeriesRefused(Refusal.DAMAGED_PIXELS, _UNDECODABLE) from error
    if stored.shape != (header.rows, header.columns):
        raise SeriesRefused(
            Refusal.DAMAGED_PIXELS,
            f"expected {header.rows} x {header.columns} pixels, the compressed data hold {stored.shape}",
        )
    return _stored_bits(stored, header)


def _read_unchanged(header: SliceHeader) -> pydicom.FileDataset:
    with quiet_pydicom():
        dataset = pydicom.dcmread(header.path, force=True)
        if header_of(dataset, header.path, header.number) != header:
            raise SeriesRefused(Refusal.CHANGED_FILE, "a file changed between reading its header and its pixels")
    if _PIXEL_DATA not in dataset:
        raise SeriesRefused(Refusal.DAMAGED_PIXELS, "a file holds no pixel data")
    return dataset


def _decode_with_itk(headers: Sequence[SliceHeader], folder: Path) -> None:
    """Decode through bare files: compressed pixels and their layout, but no slope for ITK to apply."""
    if not headers:
        return
    if not has_itk():
        raise SeriesRefused(
            Refusal.UNSUPPORTED_COMPRESSION,
            f"{_syntax_name(headers[0])} needs the package itk, which is not installed",
        )
    try:
        with quiet_pydicom():
            for header in headers:
                _bare(_read_unchanged(header)).save_as(folder / f"{header.number}.dcm", enforce_file_format=True)
        decode_apart(folder)
    except SeriesRefused:
        raise
    except Exception as error:
        raise SeriesRefused(Refusal.DAMAGED_PIXELS, _UNDECODABLE) from error


def _bare(dataset: pydicom.Dataset) -> pydicom.Dataset:
    bare = pydicom.Dataset()
    bare.file_meta = dataset.file_meta
    for tag in [0x00080016, 0x00080018, *range(0x00280002, 0x00280012), *range(0x00280100, 0x00280104), _PIXEL_DATA]:
        if tag in dataset:
            bare[tag] = dataset[tag]
    return bare


def _syntax_name(header: SliceHeader) -> str:
    return pydicom.uid.UID(header.transfer_syntax, pydicom.config.IGNORE).name


def _num_bytes(header: SliceHeader) -> int:
    return header.rows * header.columns * known(header.bits)[0] // 8


def _from_bytes(dataset: pydicom.Dataset, header: SliceHeader) -> np.ndarray:
    """Pixels of uncompressed data.

    Bytes after the last pixel are allowed as long as they could be neither a row nor a column, which a damaged header
    might hide. Bytes of 8-bit pixels in big endian words ("OW") come in swapped pairs (PS3.5 section 8.2, annex A.3).
    """
    element, allocated = dataset.get_item(_PIXEL_DATA), known(header.bits)[0]
    assert isinstance(element, RawDataElement), "pydicom converts an element when it is asked for, not before"
    expected = _num_bytes(header)
    spare = min(header.rows, header.columns) * allocated // 8
    length = len(element.value) if isinstance(element.value, bytes) else -1
    if not 0 <= length - expected < max(spare, 2):
        raise SeriesRefused(
            Refusal.DAMAGED_PIXELS,
            f"{header.rows} x {header.columns} pixels of {allocated} bits are {expected} bytes, got "
            f"{'no' if length < 0 else length}",
        )
    order = "<" if element.is_little_endian else ">"
    content = element.value or b""
    if allocated == 8 and not element.is_little_endian and element.VR == "OW":
        content = np.frombuffer(content[: length // 2 * 2], dtype="<u2").byteswap().tobytes()
    stored = np.frombuffer(content[:expected], dtype=f"{order}u{allocated // 8}")
    return stored.reshape(header.rows, header.columns)


def _stored_bits(pixels: np.ndarray, header: SliceHeader) -> np.ndarray:
    """Value of the bits stored, of pixels as they are allocated; the bits above may only be zero or repeat the sign."""
    allocated, stored, _, representation = known(header.bits)
    unsigned = pixels.astype(f"u{allocated // 8}", copy=False)  # two's complement: the same bits
    if representation == 0 and unsigned.max() < 1 << stored:
        return unsigned
    if representation == 1:
        sign = 1 << (stored - 1)
        signed = unsigned.astype(f"i{allocated // 8}", copy=False)
        if -sign <= signed.min() and signed.max() < sign:
            return signed
        if unsigned.max() < 1 << stored:
            return (unsigned.astype(np.int32) ^ sign) - sign
    raise SeriesRefused(
        Refusal.UNSUPPORTED_PIXELS,
        f"BitsStored says {stored} of {allocated} bits, but those above hold more than the sign",
    )
