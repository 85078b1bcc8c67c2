"""Where the slices of a stack lie: one affine for all of them, or the reason why there is none.

The spacing along the stack comes from the slices' positions alone. Slice thickness and the spacing that the
header names are not used for it: in a third of chest CT they differ from the true distance.

Source: DICOM PS3.3 C.7.6.2 (image plane module).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from medical_diffusion_components.dicom.headers import MIN_SLICES, SliceHeader, known
from medical_diffusion_components.dicom.refusal import Refusal, SeriesRefused

__all__ = [
    "UNIT_TOLERANCE",
    "Stack",
    "continues",
    "fit_stack",
    "offsets_along_normal",
    "repeats_position",
    "skewness",
    "slice_normal",
]

SLICE_TOLERANCE = 0.02  # of the slice spacing: how far a slice may lie from its place along the normal
IN_PLANE_TOLERANCE = 0.1  # of a pixel: how far a slice may be shifted in its plane, first to last
ORIENTATION_TOLERANCE = 1e-4  # of a direction cosine, within a series (writers round to six digits)
UNIT_TOLERANCE = 2e-3  # of the direction cosines' norm and dot product
TILT_TAG_TOLERANCE = 0.5  # degrees
_SAME_PLACE = 1e-3  # mm
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


class Stack(NamedTuple):
    """Voxel (column, row, slice) to millimetres, and the step between slices."""

    affine: np.ndarray  # (4, 4), RAS
    spacing: tuple[float, float, float]  # along columns (x), rows (y), slices (z), mm


def slice_normal(orientation: Sequence[float]) -> np.ndarray:
    """Unit normal of the image plane, in LPS: direction along a row x direction along a column."""
    normal = np.cross(orientation[:3], orientation[3:])
    return normal / max(float(np.linalg.norm(normal)), 1e-12)


def skewness(orientation: Sequence[float]) -> float:
    """How far the direction cosines are from two orthogonal unit vectors."""
    row, column = np.asarray(orientation[:3]), np.asarray(orientation[3:])
    lengths = np.linalg.norm([row, column], axis=1)
    return float(max(np.abs(lengths - 1).max(), abs(row @ column)))


def offsets_along_normal(headers: Sequence[SliceHeader]) -> np.ndarray:
    """Distance of each slice from the origin along the first slice's normal, mm. Shape: ``(N,)``."""
    return np.array([header.position for header in headers]) @ slice_normal(known(headers[0].orientation))


def repeats_position(offsets: np.ndarray) -> bool:
    """Whether two of the slices lie at one place."""
    return len(offsets) > 1 and bool(np.diff(np.sort(offsets)).min() < _SAME_PLACE)


def continues(stack: Sequence[SliceHeader], others: Sequence[SliceHeader]) -> bool:
    """Whether one of ``others`` lies exactly one step beyond either end of the sorted stack."""
    others = [other for other in others if other.position is not None]
    if len(stack) < 2 or not others:
        return False
    positions = np.array([header.position for header in stack])
    step = np.median(np.diff(positions, axis=0), axis=0)  # (3,)
    ends = np.stack([positions[0] - step, positions[-1] + step])
    away = np.linalg.norm(np.array([other.position for other in others])[:, None] - ends, axis=-1)  # (others, 2)
    return bool(away.min() < max(0.05 * np.linalg.norm(step), 0.02))


def fit_stack(headers: Sequence[SliceHeader]) -> Stack:
    """The affine of slices sorted along their normal.

    Small scatter of the positions is averaged out by least squares; it may amount to 2 % of the slice spacing
    along the normal and to a tenth of a pixel in the plane.

    Raises:
        SeriesRefused: too few slices, unequal or impossible orientation or pixel spacing, duplicate or
            missing slices, unequal distances, gantry tilt, in-plane drift, or a numbering that contradicts
            the positions.
    """
    if len(headers) < MIN_SLICES:
        raise SeriesRefused(
            Refusal.TOO_FEW_SLICES,
            f"expected at least {MIN_SLICES} slices to make a volume, got {len(headers)}",
        )
    along_row, along_column = _orientation(headers)
    between_rows, between_columns = _pixel_spacing(headers)
    normal = np.cross(along_row, along_column)
    positions = np.array([header.position for header in headers])  # (N, 3)
    offsets = positions @ normal  # (N,)
    _check_distances(offsets)
    _check_tilt(headers, positions, offsets, np.stack([along_row, along_column]), min(between_rows, between_columns))
    _check_order(headers)
    index = np.arange(len(headers)) - (len(headers) - 1) / 2
    step = float(index @ offsets / (index @ index))
    origin = positions.mean(0) - normal * step * (len(headers) - 1) / 2
    affine = np.eye(4)
    affine[:3, :3] = np.stack([along_row * between_columns, along_column * between_rows, normal * step], axis=1)
    affine[:3, 3] = origin
    return Stack(_LPS_TO_RAS @ affine, (between_columns, between_rows, step))


def _orientation(headers: Sequence[SliceHeader]) -> tuple[np.ndarray, np.ndarray]:
    cosines = np.array([header.orientation for header in headers])  # (N, 6)
    worst = max(skewness(six) for six in cosines)
    if worst > UNIT_TOLERANCE:
        raise SeriesRefused(
            Refusal.INCONSISTENT_HEADERS,
            f"ImageOrientationPatient should hold two orthogonal unit vectors, but is off by {worst:.2g}",
        )
    mean = np.median(cosines, axis=0)
    if (spread := np.abs(cosines - mean).max()) > ORIENTATION_TOLERANCE:
        raise SeriesRefused(
            Refusal.INCONSISTENT_HEADERS, f"ImageOrientationPatient differs between slices by {spread:.2g}"
        )
    row = mean[:3] / np.linalg.norm(mean[:3])
    column = mean[3:] - row * (row @ mean[3:])
    return row, column / np.linalg.norm(column)


def _pixel_spacing(headers: Sequence[SliceHeader]) -> tuple[float, float]:
    spacings = np.array([header.pixel_spacing for header in headers])  # (N, 2)
    if spacings.min() <= 0:
        raise SeriesRefused(Refusal.INCONSISTENT_HEADERS, f"PixelSpacing should be positive, got {spacings.min():g} mm")
    spacing = np.median(spacings, axis=0)
    if np.abs(spacings / spacing - 1).max() > 1e-5:
        raise SeriesRefused(
            Refusal.INCONSISTENT_HEADERS,
            f"PixelSpacing differs between slices: from {spacings.min(0)} to {spacings.max(0)} mm",
        )
    return float(spacing[0]), float(spacing[1])


def _check_distances(offsets: np.ndarray) -> None:
    distances = np.diff(offsets)
    apart = distances > _SAME_PLACE
    if not apart.all():
        where = offsets[:-1][~apart]
        raise SeriesRefused(
            Refusal.DUPLICATE_SLICES,
            f"{len(where)} slices repeat a position, first at {where[0]:.3f} mm along the slice normal",
        )
    step = np.median(distances)
    ratios = distances / step
    gaps = np.flatnonzero(ratios > 1.5)
    if len(gaps) and np.abs(ratios - ratios.round()).max() < 0.1:
        first = gaps[0]
        raise SeriesRefused(
            Refusal.MISSING_SLICES,
            f"{int(ratios[gaps].round().sum()) - len(gaps)} slices missing in {len(gaps)} gaps, the first "
            f"between {offsets[first]:.3f} and {offsets[first + 1]:.3f} mm along the slice normal, where "
            f"slices are {step:.4g} mm apart",
        )
    index = np.arange(len(offsets))
    line = np.polyval(np.polyfit(index, offsets - offsets[0], 1), index) + offsets[0]
    if (worst := np.abs(offsets - line).max()) > SLICE_TOLERANCE * step:
        raise SeriesRefused(
            Refusal.NON_UNIFORM_SPACING,
            f"distances between slices run from {distances.min():.4g} to {distances.max():.4g} mm; a slice "
            f"lies {worst:.3g} mm from its place on a uniform grid, allowed: {SLICE_TOLERANCE * step:.3g} mm",
        )


def _check_tilt(
    headers: Sequence[SliceHeader],
    positions: np.ndarray,
    offsets: np.ndarray,
    plane: np.ndarray,
    pixel: float,
) -> None:
    shift = (positions - positions[0]) @ plane.T  # (N, 2), mm along the row and the column direction
    slope, intercept = np.polyfit(offsets - offsets[0], shift, 1)  # (2,) each
    scatter = np.abs(shift - np.outer(offsets - offsets[0], slope) - intercept).max()
    angle = np.degrees(np.arctan(np.linalg.norm(slope)))
    total = np.linalg.norm(slope) * (offsets[-1] - offsets[0])
    allowed = IN_PLANE_TOLERANCE * pixel
    if scatter > allowed:
        raise SeriesRefused(
            Refusal.IN_PLANE_DRIFT,
            f"slices are shifted in their plane by up to {scatter:.3g} mm from a straight line, allowed are "
            f"{allowed:.3g} mm",
        )
    if total > allowed:
        raise SeriesRefused(
            Refusal.GANTRY_TILT,
            f"slices are stacked at {angle:.3g} degrees to their normal: they shift by {total:.3g} mm in "
            f"their plane from first to last, allowed are {allowed:.3g} mm",
        )
    tags = [abs(header.gantry_tilt or 0.0) for header in headers]
    if max(tags) > TILT_TAG_TOLERANCE:
        raise SeriesRefused(
            Refusal.GANTRY_TILT,
            f"GantryDetectorTilt says {max(tags):.3g} degrees, but the positions show no tilt",
        )


def _check_order(headers: Sequence[SliceHeader]) -> None:
    """Refuse positions that the instance numbers contradict, unless the slice locations confirm them."""
    numbers = [header.instance_number for header in headers if header.instance_number is not None]
    locations = [header.slice_location for header in headers if header.slice_location is not None]
    if len(numbers) < len(headers) or len(set(numbers)) == 1 or _is_monotone(numbers):
        return
    if len(locations) < len(headers) or not _is_monotone(locations):
        raise SeriesRefused(
            Refusal.ORDER_CONFLICT,
            "ImagePositionPatient orders the slices unlike InstanceNumber; SliceLocation does not confirm it",
        )


def _is_monotone(values: Sequence[float]) -> bool:
    differences = np.diff(values)
    return bool((differences > 0).all() or (differences < 0).all())
