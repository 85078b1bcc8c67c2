"""Doubts about a stack of DICOM slices that its positions alone do not raise.

A slice whose header was damaged leaves its stack and turns up elsewhere in the folder; if it was the first or
the last one, the rest looks like a whole volume. So what lies beside a stack is looked at as well.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medical_diffusion_components.dicom.geometry import UNIT_TOLERANCE, continues, offsets_along_normal, skewness
from medical_diffusion_components.dicom.headers import MIN_SLICES, FolderScan, SliceHeader, known
from medical_diffusion_components.dicom.refusal import Refusal, SeriesRefused

__all__ = ["SAME_DIRECTION", "check_rescale", "check_sameness", "folder_doubts", "is_placeless", "rescale_of"]

SAME_DIRECTION = 0.087  # difference of direction cosines within a stack: 5 degrees
_SAME = (
    *("sop_class", "study_uid", "frame_of_reference", "patient", "modality", "bits"),
    *("samples", "photometric", "padding", "padding_limit", "rescale_type", "thickness"),
)
_SAME_SCALE = 1e-3  # share by which Philips' scales may differ that are the same
_LARGEST_VALUE = 1e30  # of a rescaled pixel: beyond this float32 overflows, and no unit needs it


def is_placeless(header: SliceHeader) -> bool:
    """Whether position or orientation are missing."""
    return header.position is None or header.orientation is None


def folder_doubts(
    stack: list[SliceHeader], others: list[list[SliceHeader]], scan: FolderScan
) -> list[tuple[Refusal, str]]:
    """Signs elsewhere in the folder that slices of this stack are lost or went astray."""
    doubts = []
    number = _scanner_series(stack[0])
    directories = {header.path.parent for header in stack}
    if damaged := sum(directory in directories for directory in scan.damaged):
        doubts.append((Refusal.DAMAGED_FILE, f"{damaged} damaged or unreadable files beside its {len(stack)} slices"))
    if is_placeless(stack[0]):
        return doubts  # the missing tag is reported by name when the group is read
    for other in others:
        same_series = other[0].series_uid == stack[0].series_uid
        same_number = number is not None and number == _scanner_series(other[0])
        beside = bool({header.path.parent for header in other} & directories)
        lone = len(other) < MIN_SLICES and beside
        same_class = beside and other[0].sop_class == stack[0].sop_class
        if (same_series or same_class) and is_placeless(other[0]):
            doubts.append((Refusal.MISSING_TAG, f"{other[0].problem} in {len(other)} slices beside the stack"))
        elif (same_series or same_number or lone) and continues(stack, other):
            doubts.append((Refusal.STRAY_SLICES, "slices with another header continue the stack exactly"))
        elif lone and (same_series or same_number) and not _is_localiser(stack, other):
            doubts.append((Refusal.STRAY_SLICES, f"{len(other)} slices of the series fit into no stack"))
    everything = [header for part in [stack, *others] for header in part]
    if skipped := _skipped_numbers(stack, [h for h in everything if h.series_uid == stack[0].series_uid]):
        doubts.append((Refusal.MISSING_SLICES, skipped))
    return doubts


def _scanner_series(header: SliceHeader) -> tuple[str | None, float] | None:
    """Study and number of the series within it: a damaged series UID is not the only trace of a series."""
    return None if header.series_number is None else (header.study_uid, header.series_number)


def _is_localiser(stack: list[SliceHeader], other: list[SliceHeader]) -> bool:
    """Whether a few slices beside a stack are rightly there: another true orientation, or a scout by name."""
    if is_placeless(other[0]) or max(skewness(known(header.orientation)) for header in other) > UNIT_TOLERANCE:
        return False
    turned = np.abs(np.subtract(known(stack[0].orientation), known(other[0].orientation))).max() >= SAME_DIRECTION
    return bool(turned) or "LOCALIZER" in (other[0].image_type or "")


def _skipped_numbers(stack: list[SliceHeader], series: list[SliceHeader]) -> str | None:
    """Instance numbers 1, 3, 5, ... with the even ones nowhere: every other slice is lost, the rest is uniform.

    A header that states the distance as it is, or slices as thick as their distance, speak against it.
    """
    numbers = [header.instance_number for header in stack if header.instance_number is not None]
    if len(stack) < MIN_SLICES or len(numbers) < len(stack):
        return None
    steps = np.diff(numbers)
    stride = abs(steps[0])
    present = {header.instance_number for header in series}
    between = any(min(numbers) < number < min(numbers) + stride for number in present if number is not None)
    distance = float(np.diff(offsets_along_normal(stack[:2]))[0])
    if stride < 2 or (steps != steps[0]).any() or between or distance <= 0:
        return None
    stated, thickness = stack[0].spacing_between, stack[0].thickness
    if (stated and abs(stated / distance - 1) < 0.02) or (not stated and (thickness or 0) >= 0.99 * distance):
        return None
    return f"instance numbers go in steps of {stride:g}, and the slices between are nowhere in the folder"


def check_sameness(headers: Sequence[SliceHeader]) -> None:
    """Refuse slices that differ where those of one volume cannot.

    Raises:
        SeriesRefused: what differs, or a SOPInstanceUID that occurs twice.
    """
    for name in _SAME:
        values = {getattr(header, name) for header in headers}
        if len(values) > 1:
            shown = (
                "" if name in ("patient", "study_uid", "frame_of_reference") else f": {sorted(map(str, values))[:4]}"
            )
            raise SeriesRefused(Refusal.INCONSISTENT_HEADERS, f"{name} differs between slices of one series{shown}")
    uids = [header.instance_uid for header in headers]
    if None not in uids and len(set(uids)) < len(uids):
        raise SeriesRefused(Refusal.DUPLICATE_SLICES, f"{len(uids) - len(set(uids))} slices repeat a SOPInstanceUID")


def rescale_of(header: SliceHeader) -> tuple[float, float]:
    """Slope and intercept from stored to real values."""
    return (1.0, 0.0) if header.slope is None else (header.slope, known(header.intercept))


def check_rescale(headers: Sequence[SliceHeader], empty: Sequence[bool] | None = None) -> None:
    """Refuse slopes and intercepts of which one slice may be wrong.

    They must be there in all slices (always in CT) or in none, and be the same in all slices or, except in CT, be each
    slice's own: a value that more than half of the slices share must not differ in the rest. Slices that hold nothing
    have no scale of their own (scanners write 1), and do not count.

    Args:
        headers: of all slices.
        empty: which of them hold zeros alone; None before the pixels are read: the last rule then waits, except in CT,
            and so does Philips' own scale.

    Raises:
        SeriesRefused: otherwise, and for slopes that are not positive or too large.
    """
    pairs = [(header.slope, header.intercept) for header in headers]
    given = {value is not None for pair in pairs for value in pair}
    is_ct = headers[0].modality == "CT"
    if len(given) > 1 or (given == {False} and is_ct):
        raise SeriesRefused(
            Refusal.INCONSISTENT_RESCALE,
            "expected RescaleSlope and RescaleIntercept in all slices (in CT) or in none; some lack them",
        )
    scales = [(slope, intercept) for slope, intercept in pairs if slope is not None and intercept is not None]
    if scales and min(slope for slope, _ in scales) <= 0:
        raise SeriesRefused(Refusal.INCONSISTENT_RESCALE, "expected RescaleSlope above 0")
    if scales and max(slope * 2**16 + abs(intercept) for slope, intercept in scales) > _LARGEST_VALUE:
        raise SeriesRefused(Refusal.INCONSISTENT_RESCALE, "RescaleSlope or RescaleIntercept is too large for any unit")
    if empty is not None:
        _check_philips_scale([header for header, is_empty in zip(headers, empty) if not is_empty])
    if empty is not None and not is_ct:
        pairs = [pair for pair, is_empty in zip(pairs, empty) if not is_empty]
    for name, values in zip(("RescaleSlope", "RescaleIntercept"), zip(*pairs)):
        commonest = max(values.count(value) for value in set(values))
        alone = is_ct or (empty is not None and commonest > len(values) / 2)
        if len(set(values)) > 1 and alone:
            raise SeriesRefused(
                Refusal.INCONSISTENT_RESCALE,
                f"{name} is the same in {commonest} of {len(values)} slices and differs in the rest",
            )


def _check_philips_scale(headers: Sequence[SliceHeader]) -> None:
    """Refuse slices whose numbers after slope and intercept are not in one unit, by the scanner's own scale."""
    scales = [h.philips_scale * rescale_of(h)[0] for h in headers if h.philips_scale is not None]
    if scales and (len(scales) < len(headers) or max(scales) > (1 + _SAME_SCALE) * min(scales)):
        raise SeriesRefused(
            Refusal.INCONSISTENT_RESCALE,
            "expected one scale of Philips (2005,100E) times RescaleSlope in all slices, got "
            f"{min(scales):g} to {max(scales):g} in {len(scales)} of {len(headers)}: convert to NIfTI with precise values",
        )
