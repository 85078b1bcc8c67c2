"""Volumes written as DICOM series: phantom cohorts in the layout of raw downloads, and inputs for tests.

One classic CT, MR or PET object per slice, with the elements that a reader of volumes needs. The identifiers
are derived from the patient's id and the series' number, so that writing twice gives the same bytes.

Source: DICOM PS3.3 (CT, MR and PET image objects), PS3.10 (files).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
    RLELossless,
)
from pydicom.valuerep import DSfloat

_SOP_CLASSES = {
    "CT": CTImageStorage,
    "MR": MRImageStorage,
    "PT": PositronEmissionTomographyImageStorage,
}
_SYNTAXES = {
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
    RLELossless,
}


def write_series(
    folder: str | Path,
    volume: np.ndarray,
    affine: np.ndarray,
    *,
    modality: str = "CT",
    patient_id: str = "PHANTOM",
    study_uid: str | None = None,
    series_uid: str | None = None,
    series_number: int = 1,
    series_description: str = "",
    slope: ArrayLike | None = None,
    intercept: ArrayLike | None = None,
    bits_stored: int = 16,
    signed: bool = True,
    thickness: float | None = None,
    echo_time: float | None = None,
    first_instance: int = 1,
    instance_step: int = 1,
    transfer_syntax: str = ExplicitVRLittleEndian,
    names: Sequence[str] | None = None,
    adjust: Callable[[Dataset, int], None] | None = None,
) -> list[Path]:
    """Write one file per slice along the volume's last axis.

    Real values become the stored integers ``round((value - intercept) / slope)``, so a value is kept exactly
    only if it lies on that grid.

    Args:
        folder: made if it is not there; existing files of the same names are replaced.
        volume: real values (Hounsfield units for CT), indexed (column, row, slice).
        affine: indices to millimetres in RAS. Columns and rows must be orthogonal; slices may be stacked at
            an angle to their normal (gantry tilt).
        modality: ``CT``, ``MR`` or ``PT``.
        patient_id: written as PatientID, and the root of the identifiers that are not given.
        study_uid, series_uid: made from patient id and series number if not given.
        series_number: number of the series within the study.
        series_description: free text.
        slope, intercept: one number, or one per slice. Left out of the header if neither is given, except in
        CT, where
            they are 1 and 0.
        bits_stored: bits per stored value, 1 to 16 (16 are allocated).
        signed: whether stored values have a sign.
        thickness: SliceThickness, mm; the distance of the slices if not given.
        echo_time: EchoTime, ms; left out if not given.
        first_instance, instance_step: InstanceNumber of the first slice, and what each next one adds: several
        echoes of
            one series are several calls with one ``series_uid`` and different numbers.
        transfer_syntax: uncompressed (implicit, explicit, big endian, deflated) or RLE.
        names: file names, one per slice; the instance numbers if not given.
        adjust: called with each slice's dataset and index just before it is written, to set further elements
            or to spoil some. Elements of the pixels must be left alone.

    Returns:
        The files, in the order of the slices.

    Shape: ``volume`` is ``(columns, rows, slices)``, ``affine`` is ``(4, 4)``.

    Raises:
        ValueError: values that the stored integers cannot hold, an affine that DICOM cannot express, or
            arguments out of range.
    """
    volume, affine = np.asarray(volume), np.asarray(affine, dtype=float)
    num_slices = _check(volume, affine, modality, bits_stored, transfer_syntax, names)
    names = names or [f"{first_instance + k * instance_step:05d}.dcm" for k in range(num_slices)]
    study_uid = study_uid or stable_uid(patient_id, "study")
    series_uid = series_uid or stable_uid(study_uid, series_number)
    geometry = _geometry(affine, thickness)
    rescaled = slope is not None or intercept is not None or modality == "CT"
    slopes = np.broadcast_to(1.0 if slope is None else np.asarray(slope, float), num_slices)
    intercepts = np.broadcast_to(0.0 if intercept is None else np.asarray(intercept, float), num_slices)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for k in range(num_slices):
        number = first_instance + k * instance_step
        dataset = _identity(modality, patient_id, study_uid, series_uid, stable_uid(series_uid, number))
        dataset.update(geometry)
        dataset.ImagePositionPatient = _decimals(_LPS * (affine[:3, :3] @ (0, 0, k) + affine[:3, 3]))
        dataset.SeriesNumber, dataset.InstanceNumber = series_number, number
        dataset.SeriesDescription = series_description
        if echo_time is not None:
            dataset.EchoTime = _decimals([echo_time])[0]
        if rescaled:
            dataset.RescaleSlope, dataset.RescaleIntercept = _decimals([slopes[k], intercepts[k]])
            dataset.RescaleType = "HU" if modality == "CT" else "US"
        real = np.rint((volume[:, :, k].T.astype(float) - intercepts[k]) / slopes[k])  # (rows, columns)
        _set_pixels(dataset, real, bits_stored, signed, transfer_syntax == ExplicitVRBigEndian)
        paths.append(_save(dataset, folder / names[k], k, transfer_syntax, adjust))
    return paths


def stable_uid(*parts: object) -> str:
    """A DICOM UID that follows from the parts: the same in every run, different for different parts."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return f"2.25.{int.from_bytes(digest[:16], 'big')}"


_LPS = np.array([-1.0, -1.0, 1.0])


def _check(
    volume: np.ndarray,
    affine: np.ndarray,
    modality: str,
    bits_stored: int,
    transfer_syntax: str,
    names: Sequence[str] | None,
) -> int:
    if volume.ndim != 3 or 0 in volume.shape or affine.shape != (4, 4):
        raise ValueError(f"expected a 3D volume and a 4 x 4 affine, got {volume.shape} and {affine.shape}")
    if modality not in _SOP_CLASSES or transfer_syntax not in _SYNTAXES or not 1 <= bits_stored <= 16:
        raise ValueError(
            f"expected a modality of {sorted(_SOP_CLASSES)}, a transfer syntax of {sorted(_SYNTAXES)} and 1 "
            f"to 16 bits, got {modality!r}, {transfer_syntax!r} and {bits_stored}"
        )
    if names is not None and len(set(names)) != volume.shape[2]:
        raise ValueError(f"expected {volume.shape[2]} different file names, got {len(set(names))}")
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if lengths.min() <= 0 or abs(affine[:3, 0] @ affine[:3, 1]) > 1e-6 * lengths[0] * lengths[1]:
        raise ValueError("DICOM needs rows and columns of non-zero, orthogonal directions, the affine has others")
    return volume.shape[2]


def _geometry(affine: np.ndarray, thickness: float | None) -> Dataset:
    along_row, along_column, step = (_LPS * affine[:3, axis] for axis in range(3))
    spacing = np.linalg.norm([along_row, along_column], axis=1)
    normal = np.cross(along_row, along_column) / spacing.prod()
    dataset = Dataset()
    dataset.ImageOrientationPatient = _decimals([*along_row / spacing[0], *along_column / spacing[1]])
    dataset.PixelSpacing = _decimals(spacing[::-1])  # between rows, then between columns
    dataset.SliceThickness = _decimals([abs(step @ normal) if thickness is None else thickness])[0]
    return dataset


def _identity(modality: str, patient_id: str, study_uid: str, series_uid: str, instance_uid: str) -> Dataset:
    dataset = Dataset()
    dataset.SOPClassUID = _SOP_CLASSES[modality]
    dataset.SOPInstanceUID = instance_uid
    dataset.Modality = modality
    dataset.ImageType = ["ORIGINAL", "PRIMARY"]
    dataset.PatientID = dataset.PatientName = patient_id
    dataset.PatientBirthDate = dataset.PatientSex = ""
    dataset.StudyDate = dataset.StudyTime = dataset.AccessionNumber = dataset.StudyID = ""
    dataset.Manufacturer = dataset.ReferringPhysicianName = ""
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study_uid, series_uid
    dataset.FrameOfReferenceUID = stable_uid(study_uid, "frame of reference")
    return dataset


def _set_pixels(dataset: Dataset, stored: np.ndarray, bits: int, signed: bool, big_endian: bool) -> None:
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    if not (np.isfinite(stored).all() and low <= stored.min() and stored.max() <= high):
        raise ValueError(
            f"stored values must lie in [{low}, {high}], got [{stored.min():g}, {stored.max():g}]: choose "
            "another slope, intercept or number of bits"
        )
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = stored.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, bits, bits - 1
    dataset.PixelRepresentation = int(signed)
    words = stored.astype(np.int32).astype(">u2" if big_endian else "<u2")  # two's complement, kept to 16 bits
    dataset.add_new("PixelData", "OW", words.tobytes())


def _save(
    dataset: Dataset,
    path: Path,
    index: int,
    transfer_syntax: str,
    adjust: Callable[[Dataset, int], None] | None,
) -> Path:
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    if transfer_syntax == RLELossless:
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.compress(RLELossless, generate_instance_uid=False)
    else:
        dataset.file_meta.TransferSyntaxUID = transfer_syntax
    if adjust is not None:
        adjust(dataset, index)
    temporary = path.with_name(f".{path.name}.part")
    dataset.save_as(temporary, enforce_file_format=True)
    os.replace(temporary, path)
    return path


def _decimals(values: Sequence[float]) -> list[DSfloat]:
    return [DSfloat(float(value), auto_format=True) for value in values]
