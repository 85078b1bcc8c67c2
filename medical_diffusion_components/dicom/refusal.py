"""How the reading of a DICOM series is declined: a code for reports and a text for people."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["Refusal", "SeriesRefused"]


class Refusal(StrEnum):
    """Why a series was refused; the value is what a report stores."""

    NO_SERIES = "no_series"
    AMBIGUOUS = "ambiguous"
    DAMAGED_FILE = "damaged_file"
    CHANGED_FILE = "changed_file"
    MISSING_TAG = "missing_tag"
    WRONG_MODALITY = "wrong_modality"
    WRONG_COUNT = "wrong_count"
    TOO_FEW_SLICES = "too_few_slices"
    MULTI_FRAME = "multi_frame"
    INCONSISTENT_HEADERS = "inconsistent_headers"
    INCONSISTENT_RESCALE = "inconsistent_rescale"
    DUPLICATE_SLICES = "duplicate_slices"
    MISSING_SLICES = "missing_slices"
    NON_UNIFORM_SPACING = "non_uniform_spacing"
    GANTRY_TILT = "gantry_tilt"
    IN_PLANE_DRIFT = "in_plane_drift"
    ORDER_CONFLICT = "order_conflict"
    STRAY_SLICES = "stray_slices"
    UNSUPPORTED_PIXELS = "unsupported_pixels"
    UNSUPPORTED_COMPRESSION = "unsupported_compression"
    DAMAGED_PIXELS = "damaged_pixels"


class SeriesRefused(ValueError):
    """A DICOM series that cannot be read faithfully.

    Attributes:
        reason: machine-readable code.
        text: what was expected and what came; holds no identifier except the series UID and the folder's own
            name.
    """

    def __init__(self, reason: Refusal, text: str) -> None:
        super().__init__(reason, text)  # both in args: the exception crosses process pools by pickling
        self.reason = reason
        self.text = text

    def __str__(self) -> str:
        return f"[{self.reason.value}] {self.text}"
