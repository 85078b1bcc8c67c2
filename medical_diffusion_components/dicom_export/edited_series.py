"""Edited scans as DICOM series: derived images that are neither an original nor a synthetic patient.

They still show the patient whose scan was edited, so no element says that they are synthetic. What they are stands in Image
Type, Series Description, Derivation Description and Contributing Equipment. The file that was edited names no patient, so
there is none in the series either: patient and study are named by the hash of that file.

Source: DICOM PS3.3 C.7.6.1.1.2 (image type), C.7.6.1.1.3 (derivation), C.12.1 (contributing equipment).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from medical_diffusion_components.dicom.series import read_series
from medical_diffusion_components.dicom.writing import check_right_angles, derived_uid, write_series
from medical_diffusion_components.dicom_export.derived_images import (
    check_levels,
    check_replaceable,
    describe_equipment,
    describe_image,
    describe_window,
)
from medical_diffusion_components.files import write_folder_atomically
from medical_diffusion_components.reports.volume_writer import with_note

__all__ = ["EditedSeries"]


class EditedSeries:
    """The DICOM form of edited scans: a folder per scan, intensities rounded to whole numbers.

    Args:
        modality: ``CT`` or ``MR``.

    Raises:
        ValueError: another modality.
    """

    def __init__(self, modality: str) -> None:
        if modality not in ("CT", "MR"):
            raise ValueError(f"expected the modality CT or MR of what is written as DICOM, got {modality!r}")
        self.modality = modality

    def path(self, folder: Path, stem: str) -> Path:
        """The folder of a scan's series."""
        return folder / stem

    def check(self, affine: np.ndarray, low: float, high: float) -> None:
        """Say before it is made whether an edited scan can be written.

        Args:
            affine: indices to millimetres in RAS.
            low: the least intensity that it may have.
            high: the greatest.

        Raises:
            ValueError: axes that are not at right angles; intensities that 16 bits cannot hold, or that rounding would
                leave too few grey levels of.
        """
        check_right_angles(affine)
        check_levels(low, high, f"the scan has intensities in [{low:g}, {high:g}]; write NIfTI")

    def save(self, path: Path, volume: np.ndarray, affine: np.ndarray, note: Mapping[str, Any]) -> None:
        """Write a series and the note beside it, whole or not at all; a series that was there is replaced.

        Args:
            path: the series' folder.
            volume: (X, Y, Z), intensities as the scan has them.
            affine: indices to millimetres in RAS.
            note: the scan's note.

        Raises:
            ValueError: a note of something that was not edited; what :meth:`check` refuses, of the intensities here and
                the ``limits`` in the note; or a folder at ``path`` that holds something other than a series.
        """
        if note.get("synthetic") is not False or "edited_from" not in note:
            raise ValueError(f"{path}: expected the note of an edited scan, with edited_from and synthetic false")
        low, high = float(volume.min()), float(volume.max())
        known = [low, high, *note.get("limits", ())]
        self.check(affine, min(known), max(known))
        stored = np.rint(volume).astype(np.int16)
        header = self._header(note, affine, (low, high))
        check_replaceable(path)
        write = partial(write_series, stored=stored, affine=affine, header=header)
        write_folder_atomically(path, with_note(path, note, write))

    def load(self, path: Path, note: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Intensities (columns, rows, slices) and their affine."""
        series = read_series(path)
        return series.array, series.affine

    def _header(self, note: Mapping[str, Any], affine: np.ndarray, window: tuple[float, float]) -> Dataset:
        made = {key: value for key, value in note.items() if key != "versions"}
        identity = json.dumps([made, self.modality, np.asarray(affine).round(6).tolist()], sort_keys=True)
        source = str(note["edited_from"]["image_sha256"])[:12]
        header = Dataset()
        header.SpecificCharacterSet = "ISO_IR 192"  # UTF-8
        header.PatientName = header.PatientID = f"EDITED-{source}"
        header.PatientBirthDate = header.PatientSex = ""
        header.StudyInstanceUID = derived_uid(source, "study of edited scans")
        header.StudyDescription = "Edited scan, research only"
        header.StudyDate = header.StudyTime = header.AccessionNumber = header.ReferringPhysicianName = ""
        header.StudyID, header.SeriesNumber, header.AcquisitionNumber = source, 1, None
        header.Laterality = header.PatientPosition = ""
        header.Modality = self.modality
        header.SeriesInstanceUID = derived_uid(identity, "series")
        header.SeriesDescription = f"EDITED {self.modality} by a generative model"
        header.FrameOfReferenceUID = derived_uid(source, "frame of reference")
        header.PositionReferenceIndicator = ""
        header.LossyImageCompression, header.BurnedInAnnotation = "00", "NO"
        _describe_derivation(header, note)
        describe_image(header, self.modality, "SECONDARY", "EDITED")
        describe_window(header, *window)
        return header


def _describe_derivation(header: Dataset, note: Mapping[str, Any]) -> None:
    describe_equipment(header, note, "109102", "Processing Equipment")
    sources = ", ".join(f"{name} {value}" for name, value in note["edited_from"].items())
    header.DerivationDescription = (
        f"Edited from a real scan ({note['operation']}) by a generative model; it still shows the patient. {sources}"
    )[:1024]
