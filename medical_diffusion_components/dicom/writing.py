"""Volumes written as DICOM series: one classic image per slice, turned as radiologists look at it.

The caller says what the images are (:class:`pydicom.dataset.Dataset` with patient, study, series, equipment); this module
adds what follows from the volume: its place in the patient, the pixels, and numbers and identifiers of the slices.

Source: DICOM PS3.3 C.7.6.2 (image plane), C.7.6.3 (image pixel); PS3.5 B.2 (identifiers from UUIDs); PS3.10 (files).
"""

from __future__ import annotations

import copy
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from pydicom.valuerep import DSfloat

__all__ = ["check_right_angles", "derived_uid", "series_images", "write_series"]

_TO_LPS = np.array([-1.0, -1.0, 1.0])
# where columns, rows and slices go when a slice lies across one axis of the patient: axial and coronal slices are seen
# with the patient's left on the right-hand side, sagittal ones with the face to the left
_DISPLAY = {"I": "LPS", "S": "LPS", "A": "LIP", "P": "LIP", "L": "PIR", "R": "PIR"}
_ORTHOGONAL = 1e-4  # cosine between axes of the grid


def derived_uid(*parts: object) -> str:
    """An identifier that follows from the parts: ``2.25.`` and the UUID (version 5) of their text."""
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, chr(0).join(map(str, parts))).int}"


def check_right_angles(affine: np.ndarray) -> None:
    """Raises: ValueError: the axes of the affine (4, 4) are not at right angles, as those of an image plane must be."""
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    directions = affine[:3, :3] / np.maximum(lengths, np.finfo(float).tiny)
    if lengths.min() <= 0 or np.abs(directions.T @ directions - np.eye(3)).max() > _ORTHOGONAL:
        raise ValueError(f"expected axes at right angles, got the affine {affine.tolist()}")


def series_images(stored: np.ndarray, affine: np.ndarray, header: Dataset) -> Iterator[Dataset]:
    """The images of a series, one per slice along the volume's last axis, in the order of their instance numbers.

    Args:
        stored: what is written as pixels, indexed as ``affine`` says.
        affine: indices to millimetres in RAS, as in NIfTI.
        header: elements of every image, among them SOPClassUID and SeriesInstanceUID, from which the images' identifiers
            are derived.

    Shape: ``stored`` is ``(H, W, D)`` of int16 or uint16, ``affine`` is ``(4, 4)``.

    Raises:
        ValueError: pixels of another type or shape, or axes that are not at right angles.
    """
    stored, affine = _as_displayed(np.asarray(stored), np.asarray(affine, dtype=np.float64))  # (columns, rows, slices)
    steps = _TO_LPS[:, None] * affine[:3, :3]  # mm per column, row and slice
    spacing = np.linalg.norm(steps, axis=0)
    for number in range(stored.shape[2]):
        image = copy.deepcopy(header)
        image.SOPInstanceUID = derived_uid(header.SeriesInstanceUID, number + 1)
        image.InstanceNumber = number + 1
        image.ImageOrientationPatient = _decimals([*steps[:, 0] / spacing[0], *steps[:, 1] / spacing[1]])
        image.ImagePositionPatient = _decimals(_TO_LPS * (affine[:3, :3] @ (0, 0, number) + affine[:3, 3]))
        image.PixelSpacing = _decimals([spacing[1], spacing[0]])  # between rows, then between columns
        image.SliceThickness = _decimals([spacing[2]])[0]
        _set_pixels(image, stored[:, :, number].T)
        yield image


def write_series(folder: Path, stored: np.ndarray, affine: np.ndarray, header: Dataset) -> list[Path]:
    """Write :func:`series_images` to ``00001.dcm``, ``00002.dcm`` and so on; with the same arguments and errors.

    The same arguments give the same bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for image in series_images(stored, affine, header):
        image.file_meta = FileMetaDataset()
        image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        paths.append(folder / f"{image.InstanceNumber:05d}.dcm")
        image.save_as(paths[-1], enforce_file_format=True)
    return paths


def _as_displayed(stored: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The volume turned so that its axes are columns, rows and slices, with the affine of the turned one."""
    if stored.ndim != 3 or stored.dtype not in (np.int16, np.uint16) or affine.shape != (4, 4):
        raise ValueError(
            "expected a volume (H, W, D) of int16 or uint16 and an affine (4, 4), got "
            f"{stored.shape} of {stored.dtype} and {affine.shape}"
        )
    check_right_angles(affine)
    wanted = _DISPLAY[nib.aff2axcodes(affine)[2]]
    turn = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt(wanted))
    turned = affine @ nib.orientations.inv_ornt_aff(turn, stored.shape)
    return nib.orientations.apply_orientation(stored, turn), turned


def _set_pixels(image: Dataset, pixels: np.ndarray) -> None:
    """Args: pixels: (rows, columns)."""
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.Rows, image.Columns = pixels.shape
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, 16, 15
    image.PixelRepresentation = int(pixels.dtype.kind == "i")
    image.add_new("PixelData", "OW", pixels.astype(pixels.dtype.newbyteorder("<")).tobytes())


def _decimals(values: Sequence[float] | np.ndarray) -> list[DSfloat]:
    return [DSfloat(float(value) + 0.0, auto_format=True) for value in values]  # no -0.0
