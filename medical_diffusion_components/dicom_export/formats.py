"""The forms in which results can be written."""

from __future__ import annotations

from typing import Any

__all__ = ["is_dicom"]

FORMATS = ("nifti", "dicom")


def is_dicom(output_format: str, **of_dicom_alone: Any) -> bool:
    """Whether results are to be DICOM.

    Args:
        output_format: ``nifti`` or ``dicom``.
        of_dicom_alone: settings that change nothing in another format.

    Raises:
        ValueError: an output format that there is not, or a setting that would change nothing.
    """
    if output_format not in FORMATS:
        raise ValueError(f"expected an output_format of {' or '.join(FORMATS)}, got {output_format!r}")
    if output_format != "dicom" and (given := [name for name, value in of_dicom_alone.items() if value]):
        raise ValueError(f"--{given[0]} changes nothing without --output_format dicom")
    return output_format == "dicom"
