"""What all series of derived images say, and what their files can hold.

Source: DICOM PS3.3 C.7.5.1 (equipment), C.7.6.1.1.2 (image type), C.8.2.1 (CT image), C.8.3.1 (MR image).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import CTImageStorage, MRImageStorage

from medical_diffusion_components.files import PACKAGE_NAME

__all__ = ["check_levels", "check_replaceable", "describe_equipment", "describe_image", "describe_window"]

_MIN_LEVELS = 256  # grey levels that a range must have once it is rounded to whole numbers
_INT16 = np.iinfo(np.int16)


def check_levels(low: float, high: float, otherwise: str) -> None:
    """Refuse intensities that 16 bits cannot hold, or of which rounding would leave too few grey levels.

    Args:
        low: the least intensity.
        high: the greatest.
        otherwise: the end of the message: what came, and what to do about it.

    Raises:
        ValueError: such intensities.
    """
    fits = np.rint(low) >= _INT16.min and np.rint(high) <= _INT16.max and high - low >= _MIN_LEVELS - 1
    if not fits:  # nor does what is no number
        raise ValueError(
            f"DICOM holds whole numbers from {_INT16.min} to {_INT16.max}, and at least {_MIN_LEVELS} grey levels are "
            f"wanted: {otherwise}"
        )


def check_replaceable(path: Path) -> None:
    """Raises: ValueError: there is something at ``path`` that a series does not consist of."""
    if path.is_dir():
        foreign = [entry.name for entry in path.iterdir() if entry.suffix != ".dcm" or not entry.is_file()]
        if foreign:
            raise ValueError(f"{path} holds something other than a series, such as {foreign[0]}: move it away")
    elif path.exists():
        raise ValueError(f"{path} should be the folder of a series, but is a file: move it away")


def describe_equipment(header: Dataset, note: Mapping[str, Any], code: str, meaning: str) -> None:
    """Which software and weights made the images, and that they are for research.

    Args:
        header: is changed.
        note: the JSON beside the volume.
        code: of the equipment's purpose, a code of DICOM's own (PS3.16, CID 7005).
        meaning: of that code.
    """
    header.Manufacturer = PACKAGE_NAME
    header.ManufacturerModelName = str(note.get("bundle", PACKAGE_NAME))[:64]
    header.SoftwareVersions = str(note["versions"][PACKAGE_NAME])[:64]
    header.ContentQualification = "RESEARCH"
    purpose = Dataset()
    purpose.CodeValue, purpose.CodingSchemeDesignator = code, "DCM"
    purpose.CodeMeaning = meaning
    equipment = Dataset()
    equipment.PurposeOfReferenceCodeSequence = DicomSequence([purpose])
    equipment.Manufacturer, equipment.ManufacturerModelName = header.Manufacturer, header.ManufacturerModelName
    equipment.SoftwareVersions = header.SoftwareVersions
    equipment.ContributionDescription = f"weights with SHA-256 {note['weights_sha256']}, seed {note['seed']}"
    header.ContributingEquipmentSequence = DicomSequence([equipment])


def describe_image(header: Dataset, modality: str, origin: Literal["PRIMARY", "SECONDARY"], word: str) -> None:
    """What every CT or MR image has to say of its making, with intensities of no unit.

    Args:
        header: is changed.
        modality: ``CT`` or ``MR``.
        origin: whether the images show what was acquired, as DICOM puts it, or follow from such images.
        word: that the image type ends with.
    """
    if modality == "CT":
        header.SOPClassUID = CTImageStorage
        header.ImageType = ["DERIVED", origin, "AXIAL", "", word]
        header.KVP = None
        header.RescaleIntercept, header.RescaleSlope, header.RescaleType = "0", "1", "US"
    else:
        header.SOPClassUID = MRImageStorage
        header.ImageType = ["DERIVED", origin, "OTHER", word]
        header.ScanningSequence, header.SequenceVariant, header.ScanOptions = "RM", "NONE", ""
        header.MRAcquisitionType = "3D"
        header.EchoTime = header.EchoTrainLength = header.RepetitionTime = None


def describe_window(header: Dataset, low: float, high: float) -> None:
    """The window in which ``low`` is black and ``high`` is white, by the formula of PS3.3 C.11.2.1.2."""
    header.WindowWidth, header.WindowCenter = f"{high - low + 1:g}", f"{(low + high + 1) / 2:g}"
