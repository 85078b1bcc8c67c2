"""Synthetic volumes as DICOM series that nobody can take for a patient's.

Every image says so in five places, since a de-identification profile or an archive may remove one: Synthetic Data
(0008,001C), Image Type, Series Description, the patient's name, and Contributing Equipment with the code for synthesis.
There is no date, no person and no hospital in it. All identifiers follow from the weights, the seed and the settings, so
a volume that is written again has the same ones.

Source: DICOM PS3.3 C.12.1 (SOP common), C.7.5.1 (equipment), C.8.2.1 (CT image), C.8.3.1 (MR image), PS3.16 CID 7005.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydicom.dataset import Dataset

from medical_diffusion_components.data.conditions import Conditions
from medical_diffusion_components.dicom.series import read_series
from medical_diffusion_components.dicom.writing import derived_uid, write_series
from medical_diffusion_components.dicom_export.derived_images import (
    check_levels,
    check_replaceable,
    describe_equipment,
    describe_image,
    describe_window,
)
from medical_diffusion_components.files import write_folder_atomically
from medical_diffusion_components.reports.volume_writer import with_note

__all__ = ["SyntheticSeries"]

NOMINAL_HOUNSFIELD = (-1000.0, 1000.0)
# width and centre that radiologists look at chest CT with
_CT_WINDOWS = {"LUNG": (1500, -600), "SOFT TISSUE": (400, 40)}
_AGE_UNITS = {"years": "Y", "months": "M", "weeks": "W", "days": "D"}


class _Scale(NamedTuple):
    """Intensities from ``written`` are the pixels' values from ``meant``; ``known`` in that unit, or only nominally."""

    written: tuple[float, float]
    meant: tuple[float, float]
    known: bool


class SyntheticSeries:
    """The DICOM form of :class:`~medical_diffusion_components.reports.SyntheticVolumeWriter`: a folder per volume.

    Where preparation fixed a window, the pixels are in its unit: Hounsfield units in CT. Otherwise each training volume was
    scaled by its own limits, and the unit is lost: MR keeps the intensities of the NIfTI form, CT takes the nominal range,
    with the rescale type ``US`` (unspecified) and a comment that says so.

    Args:
        modality: ``CT`` or ``MR``.
        intensity_range: of the volumes that are written.
        nominal_hounsfield: what the ends of ``intensity_range`` become in CT of which no window is known.
        conditions: those that the weights were trained with. What a volume was asked for stands in the description, and as
            age, sex, size and weight where a condition of that name (size also as height) has the unit or the values that
            DICOM has: years, months, weeks or days; F, M and O; m or cm; kg.
        window: what the ends of ``intensity_range`` mean, as the notes of the volumes will say; None: that is not known.

    Raises:
        ValueError: another modality, limits that do not ascend, or that 16 bits cannot hold, or so near that rounding
            would leave too few grey levels.
    """

    def __init__(
        self,
        modality: str,
        intensity_range: Sequence[float],
        nominal_hounsfield: Sequence[float] = NOMINAL_HOUNSFIELD,
        conditions: Conditions | None = None,
        window: Sequence[float] | None = None,
    ) -> None:
        if modality not in ("CT", "MR"):
            raise ValueError(f"expected the modality CT or MR of what is written as DICOM, got {modality!r}")
        self.modality = modality
        self.intensity_range = _limits("intensity_range", intensity_range)
        self.nominal_hounsfield = _limits("nominal_hounsfield", nominal_hounsfield)
        self.conditions = conditions or Conditions()
        self._scale({} if window is None else {"window": window})  # now rather than after the first volume was drawn

    def path(self, folder: Path, stem: str) -> Path:
        """The folder of a volume's series."""
        return folder / stem

    def save(self, path: Path, volume: np.ndarray, affine: np.ndarray, note: Mapping[str, Any]) -> None:
        """Write a series and the note beside it, whole or not at all; a series that was there is replaced.

        Args:
            path: the series' folder.
            volume: (H, W, D), intensities within ``intensity_range``.
            affine: indices to millimetres in RAS.
            note: the volume's note.

        Raises:
            ValueError: limits that 16 bits cannot hold, or so near that rounding would leave too few grey levels; or a
                folder at ``path`` that holds something other than a series.
        """
        scale = self._scale(note)
        (low, high), (start, end) = scale.written, scale.meant
        real = (volume.astype(np.float64) - low) / (high - low) * (end - start) + start
        stored = np.rint(real).astype(np.int16 if start < 0 or self.modality == "CT" else np.uint16)
        header = self._header(note, scale, affine, volume.shape)
        check_replaceable(path)
        write = partial(write_series, stored=stored, affine=affine, header=header)
        write_folder_atomically(path, with_note(path, note, write))

    def load(self, path: Path, note: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Intensities (columns, rows, slices) as they were given to :meth:`save`, but for rounding, and their affine."""
        (low, high), (start, end), _ = self._scale(note)
        series = read_series(path)
        return (series.array - start) / (end - start) * (high - low) + low, series.affine

    def _scale(self, note: Mapping[str, Any]) -> _Scale:
        known = "window" in note
        if known:
            meant = _limits("window", note["window"])
        else:
            meant = self.nominal_hounsfield if self.modality == "CT" else self.intensity_range
        start, end = meant
        check_levels(
            start, end, f'expected another range than [{start:g}, {end:g}], such as --intensity_range "[0.0, 4095.0]"'
        )
        return _Scale(self.intensity_range, meant, known)

    def _header(self, note: Mapping[str, Any], scale: _Scale, affine: np.ndarray, shape: Sequence[int]) -> Dataset:
        made = {key: value for key, value in note.items() if key not in ("seconds", "versions", "audit")}
        grid = (self.modality, *scale, np.asarray(affine).round(6).tolist(), list(shape))
        identity = json.dumps([made, grid], sort_keys=True)
        weights, seed = str(note["weights_sha256"])[:12], int(note["seed"])
        header = Dataset()
        header.SpecificCharacterSet = "ISO_IR 192"  # UTF-8
        _describe_patient_and_study(header, weights, seed, identity)
        header.Modality = self.modality
        header.SeriesInstanceUID = derived_uid(identity, "series")
        header.SeriesNumber = 1
        header.SeriesDescription = f"SYNTHETIC {self.modality}, not a patient"
        header.FrameOfReferenceUID = derived_uid(identity, "frame of reference")
        header.PositionReferenceIndicator = ""
        _describe_origin(header, note)
        _describe_conditions(header, self.conditions, note.get("conditions", {}))
        header.LossyImageCompression = "00"
        header.BurnedInAnnotation = "NO"
        describe_image(header, self.modality, "PRIMARY", "SYNTHETIC")
        describe_window(header, *scale.meant)
        if self.modality == "CT":
            _describe_unit(header, scale)
        return header


def _describe_patient_and_study(header: Dataset, weights: str, seed: int, identity: str) -> None:
    header.PatientName = f"SYNTHETIC^Volume {seed}"
    header.PatientID = f"SYNTHETIC-{weights}-{seed:06d}"
    header.PatientBirthDate = header.PatientSex = ""
    header.PatientComments = "Synthetic data: this is not a person"
    header.StudyInstanceUID = derived_uid(identity, "study")
    header.StudyID = f"{seed}"
    header.StudyDescription = "SYNTHETIC volume, not a patient"
    header.StudyDate = header.StudyTime = header.AccessionNumber = header.ReferringPhysicianName = ""
    header.AcquisitionNumber = None
    header.Laterality = header.PatientPosition = ""  # of a body that never lay anywhere


def _describe_origin(header: Dataset, note: Mapping[str, Any]) -> None:
    """What made the images, and that they are synthetic."""
    describe_equipment(header, note, "109100", "Synthesizing Equipment")
    header.SyntheticData = "YES"
    origin = f"Synthesised from noise by a generative model that was trained on: {note['trained_on']}"
    header.DerivationDescription = ". ".join(filter(None, (origin, note["notice"])))[:1024]


def _describe_conditions(header: Dataset, conditions: Conditions, given: Mapping[str, Any]) -> None:
    """What the volume was asked for: in words, and where DICOM has a tag for it."""
    asked = []
    for variable in conditions.variables:
        value = given.get(variable.name)
        if value is None:
            continue
        text = value if variable.values else f"{value:g} {variable.unit}".rstrip()
        asked.append(f"{variable.name} {text}")
        if variable.name == "age" and variable.unit in _AGE_UNITS and 0 <= round(value) <= 999:
            header.PatientAge = f"{round(value):03d}{_AGE_UNITS[variable.unit]}"
        elif variable.name == "sex" and value in ("F", "M", "O"):
            header.PatientSex = value
        elif variable.name in ("size", "height") and variable.unit in ("m", "cm"):
            header.PatientSize = f"{value / (100 if variable.unit == 'cm' else 1):.4g}"
        elif variable.name == "weight" and variable.unit == "kg":
            header.PatientWeight = f"{value:.5g}"
    if asked:
        words = f"Asked for: {', '.join(asked)}. "
        header.DerivationDescription = (words + header.DerivationDescription)[:1024]


def _describe_unit(header: Dataset, scale: _Scale) -> None:
    """Whether the values of CT are Hounsfield units."""
    if scale.known:
        header.RescaleType = "HU"
        header.WindowWidth = [str(width) for width, _ in _CT_WINDOWS.values()]
        header.WindowCenter = [str(centre) for _, centre in _CT_WINDOWS.values()]
        header.WindowCenterWidthExplanation = list(_CT_WINDOWS)
    else:
        header.ImageComments = "No Hounsfield units: every training volume was scaled by its own limits"


def _limits(name: str, values: Sequence[float]) -> tuple[float, float]:
    limits = tuple(float(value) for value in values)
    if len(limits) != 2 or not limits[0] < limits[1]:
        raise ValueError(f"expected two ascending numbers as {name}, got {list(values)}")
    return limits
