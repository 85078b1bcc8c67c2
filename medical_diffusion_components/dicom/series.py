"""Volumes from folders of DICOM slices: read faithfully, or refused with the reason.

A folder may hold several series, several echoes under one series UID, localisers, foreign files, and slices
that got lost or damaged on the way. :func:`find_series` sorts the images into groups that could each be a
volume, :func:`select_series` picks one or says why it cannot, and :func:`read_volume` reads it;
:func:`read_series` is all three. What cannot be read faithfully raises :class:`SeriesRefused` with a code
from :class:`Refusal`. No step repairs, interpolates, or leaves a slice out.

Two kinds of damage leave no trace in the files: changed bits inside uncompressed pixel data, and slices cut
off cleanly from an end of the stack. Against the second, give the number of slices that the archive's index
states.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from pydicom import uid

from medical_diffusion_components.dicom.checks import (
    SAME_DIRECTION,
    check_rescale,
    check_sameness,
    folder_doubts,
    is_placeless,
    rescale_of,
)
from medical_diffusion_components.dicom.geometry import Stack, fit_stack, offsets_along_normal, repeats_position
from medical_diffusion_components.dicom.headers import MIN_SLICES, FolderScan, SliceHeader, known, scan_files
from medical_diffusion_components.dicom.pixels import check_pixel_format, read_stored_slices
from medical_diffusion_components.dicom.refusal import Refusal, SeriesRefused

__all__ = [
    "DicomVolume",
    "Refusal",
    "SeriesGroup",
    "SeriesRefused",
    "find_series",
    "read_series",
    "read_volume",
    "select_series",
]

_ENHANCED = {  # their slices have no position of their own where it is looked for, even if there is one a file
    uid.EnhancedCTImageStorage,
    uid.EnhancedMRImageStorage,
    uid.EnhancedPETImageStorage,
    uid.LegacyConvertedEnhancedCTImageStorage,
    uid.LegacyConvertedEnhancedMRImageStorage,
    uid.LegacyConvertedEnhancedPETImageStorage,
}
_SAME_ECHO = 1e-3  # ms
_NO_MAGNITUDE = {
    "P",
    "PHASE",
    "PHASE MAP",
    "I",
    "IMAGINARY",
    "R",
    "REAL",
    "VELOCITY MAP",
}  # words of an image type, in MR
_SPLITTING = ("echo_number", "temporal", "image_type", "acquisition", "trigger_time")


class SeriesGroup(NamedTuple):
    """Slices of one series, orientation, size and echo time, sorted along their normal; headers only.

    ``doubts`` are the reasons, found while sorting the whole folder, why this group may lack slices or hold
    wrong ones; a group with doubts is refused when it is read. ``split_by`` names the element, and the
    group's value of it, that separates this group from others at the same positions. ``remarks`` name what a person should
    know: see :func:`_remarks`.
    """

    folder: str
    series_uid: str
    modality: str | None
    rows: int
    columns: int
    echo_time: float | None
    split_by: str | None
    slices: tuple[SliceHeader, ...]
    num_other_files: int
    doubts: tuple[tuple[Refusal, str], ...]
    remarks: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """One line for messages; holds no identifier but the series UID."""
        echo = "" if self.echo_time is None else f", echo time {self.echo_time:g} ms"
        split = f", {self.split_by}" if self.split_by else ""
        size = f"{len(self.slices)} slices of {self.rows} x {self.columns}"
        return f"{self.series_uid} ({self.modality}, {size}{echo}{split})"


class DicomVolume(NamedTuple):
    """A volume and what its headers say of it.

    ``array`` is float32 in the order (column, row, slice), after slope and intercept: Hounsfield units for
    CT. ``affine`` maps its indices to millimetres in RAS, as in NIfTI. ``spacing`` is in mm and comes, along
    the slices, from their positions; ``thickness`` is what the header calls the slice thickness.
    ``padding_value``, after slope and intercept, marks voxels outside the scanner's field of view; they are
    left as they are. With ``padding_limit``, all values from the one to the other mark them.
    """

    array: np.ndarray
    affine: np.ndarray
    spacing: tuple[float, float, float]
    series_uid: str
    modality: str
    thickness: float | None
    echo_time: float | None
    padding_value: float | None
    padding_limit: float | None
    transfer_syntax: str
    num_other_files: int
    remarks: tuple[str, ...] = ()


def find_series(folder: str | Path, files: Iterable[Path] | None = None) -> list[SeriesGroup]:
    """Sort the images below a folder, or the files given, into groups, reading headers only.

    A group shares series UID, rows, columns, orientation (within 5 degrees) and echo time. Where slices
    repeat positions and one of echo number, temporal position, image type, acquisition number or trigger time
    separates them into stacks at equal positions, each stack is a group.

    Args:
        folder: searched with all its subfolders.
        files: instead of the search: the slices of a series and what lies beside them, in whatever folders; ``folder``
            is then only a name for messages.

    Returns:
        Groups by series UID, then echo time, then number of slices.

    Raises:
        SeriesRefused: no DICOM image in the folder.
        FileNotFoundError: no such folder.
    """
    name = Path(folder).resolve().name
    scan = scan_files(folder if files is None else files)
    if not scan.headers:
        raise SeriesRefused(
            Refusal.NO_SERIES,
            f"no readable DICOM image in {name!r}: {len(scan.damaged)} damaged, {scan.num_other} other files",
        )
    stacks = []
    for similar in _partition(scan.headers, lambda h: (h.series_uid, h.rows, h.columns, h.echo_time)):
        for stack in _by_orientation(similar):
            stacks += _separate_repeats(stack)
    groups = [_make_group(name, stack, split, stacks, scan) for stack, split in stacks]
    return sorted(groups, key=lambda g: (g.series_uid, g.echo_time or 0.0, len(g.slices), g.split_by or ""))


def select_series(
    groups: Sequence[SeriesGroup],
    series_uid: str | None = None,
    echo_time: float | Literal["first"] | None = None,
    modality: str | None = None,
    num_slices: int | None = None,
) -> SeriesGroup:
    """The one wanted group.

    Groups of fewer than three slices (localisers) are passed over where there are others.

    Args:
        groups: from :func:`find_series`.
        series_uid: wanted SeriesInstanceUID; needed if there is more than one.
        echo_time: wanted echo time in ms, or ``"first"`` for the shortest; needed if the series holds
            several.
        modality: expected Modality, such as ``"CT"``.
        num_slices: expected number of slices, as stated by the archive's index.

    Raises:
        SeriesRefused: no such group, several that fit, another modality, or another number of slices.
    """
    wanted = [group for group in groups if series_uid in (None, group.series_uid)]
    wanted = [group for group in wanted if len(group.slices) >= MIN_SLICES] or wanted
    if not wanted:
        raise SeriesRefused(
            Refusal.NO_SERIES,
            f"series {series_uid} is not among the {len({g.series_uid for g in groups})} series"
            + (f" of {groups[0].folder!r}" if groups else ""),
        )
    if echo_time is not None and len({group.series_uid for group in wanted}) == 1:
        wanted = _of_echo(wanted, echo_time)
    if len(wanted) > 1:
        listed = "; ".join(group.label for group in wanted[:8]) + ("; ..." if len(wanted) > 8 else "")
        raise SeriesRefused(
            Refusal.AMBIGUOUS, f"{len(wanted)} volumes in {wanted[0].folder!r}, say which is meant: {listed}"
        )
    group = wanted[0]
    if modality not in (None, group.modality):
        raise _refused(group, Refusal.WRONG_MODALITY, f"expected modality {modality}, got {group.modality}")
    if num_slices not in (None, len(group.slices)):
        try:
            check_group(group)  # why slices are missing says more than that they are
        except SeriesRefused as refused:
            raise _refused(group, refused.reason, refused.text) from refused
        raise _refused(group, Refusal.WRONG_COUNT, f"expected {num_slices} slices, got {len(group.slices)}")
    return group


def read_volume(group: SeriesGroup) -> DicomVolume:
    """Read a group's pixels into one volume.

    Holds the float32 volume and one slice at a time: 0.63 GB for 512 x 512 x 600.

    Shape: ``array`` is ``(columns, rows, slices)``, ``affine`` is ``(4, 4)``.

    Raises:
        SeriesRefused: whatever keeps the group from being read faithfully; see :class:`Refusal`.
    """
    try:
        stack = check_group(group)
        array = np.empty((len(group.slices), group.rows, group.columns), dtype=np.float32)
        real = np.empty(array.shape[1:])  # one slice in double precision
        empty = []
        for plane, header, stored in zip(array, group.slices, read_stored_slices(group.slices)):
            slope, intercept = rescale_of(header)
            np.multiply(stored, slope, out=real)
            real += intercept
            plane[...] = real
            empty.append(not stored.any())
        check_rescale(group.slices, empty)
    except SeriesRefused as refused:
        raise _refused(group, refused.reason, refused.text) from refused
    first = group.slices[0]
    slope, intercept = rescale_of(first)
    return DicomVolume(
        array=array.T,  # (columns, rows, slices)
        affine=stack.affine,
        spacing=stack.spacing,
        series_uid=group.series_uid,
        modality=known(group.modality),
        thickness=first.thickness,
        echo_time=group.echo_time,
        padding_value=None if first.padding is None else first.padding * slope + intercept,
        padding_limit=None if first.padding_limit is None else first.padding_limit * slope + intercept,
        transfer_syntax=first.transfer_syntax,
        num_other_files=group.num_other_files,
        remarks=group.remarks,
    )


def read_series(
    folder: str | Path,
    series_uid: str | None = None,
    echo_time: float | Literal["first"] | None = None,
    modality: str | None = None,
    num_slices: int | None = None,
) -> DicomVolume:
    """Find, select and read; arguments as in :func:`select_series`."""
    return read_volume(select_series(find_series(folder), series_uid, echo_time, modality, num_slices))


def check_group(group: SeriesGroup) -> Stack:
    """All that can be checked without reading pixels; the geometry if nothing is wrong.

    Raises:
        SeriesRefused: see :func:`read_volume`.
    """
    for reason, text in group.doubts:
        raise SeriesRefused(reason, text)
    for header in group.slices:
        if (header.frames or 1) != 1 or header.sop_class in _ENHANCED:
            raise SeriesRefused(
                Refusal.MULTI_FRAME,
                f"expected one slice a file, got {header.frames or 1:g} frames of an enhanced or multi-frame object: "
                "convert to single slices, or to NIfTI, as with dcm2niix",
            )
        if header.problem:
            raise SeriesRefused(Refusal.MISSING_TAG, f"{header.problem} in file {header.number} of the folder")
        check_pixel_format(header)
    check_sameness(group.slices)
    check_rescale(group.slices)
    return fit_stack(group.slices)


def _of_echo(groups: list[SeriesGroup], echo_time: float | Literal["first"]) -> list[SeriesGroup]:
    times = sorted({group.echo_time for group in groups if group.echo_time is not None})
    if echo_time == "first" and not times:
        return groups
    target = times[0] if echo_time == "first" else float(echo_time)
    wanted = [g for g in groups if g.echo_time is not None and abs(g.echo_time - target) <= _SAME_ECHO]
    if not wanted:
        raise SeriesRefused(Refusal.NO_SERIES, f"no echo time {target:g} ms, the series has {times} ms")
    headers = [header for group in wanted for header in group.slices]
    numbers = {header.echo_number for header in headers if header.echo_number is not None}
    if echo_time == "first" and numbers and min(numbers) > 1:
        raise _refused(
            wanted[0],
            Refusal.NO_SERIES,
            f"the first echo is not there, the lowest is number {min(numbers):g}",
        )
    return wanted


def _refused(group: SeriesGroup, reason: Refusal, text: str) -> SeriesRefused:
    return SeriesRefused(reason, f"series {group.series_uid} in {group.folder!r}: {text}")


def _partition(headers: Iterable[SliceHeader], key: Callable[[SliceHeader], object]) -> list[list[SliceHeader]]:
    parts: dict[object, list[SliceHeader]] = defaultdict(list)
    for header in headers:
        parts[key(header)].append(header)
    return list(parts.values())


def _by_orientation(headers: list[SliceHeader]) -> list[list[SliceHeader]]:
    """Stacks of like orientation, sorted along their normals; slices without a place are one more stack."""
    stacks: list[list[SliceHeader]] = []
    placeless = [header for header in headers if is_placeless(header)]
    for header in headers:
        if is_placeless(header):
            continue
        for stack in stacks:
            if np.abs(np.subtract(known(header.orientation), known(stack[0].orientation))).max() < SAME_DIRECTION:
                stack.append(header)
                break
        else:
            stacks.append([header])
    ordered = [[stack[i] for i in np.argsort(offsets_along_normal(stack), kind="stable")] for stack in stacks]
    return ordered + ([placeless] if placeless else [])


def _separate_repeats(stack: list[SliceHeader]) -> list[tuple[list[SliceHeader], str | None]]:
    if is_placeless(stack[0]) or not repeats_position(offsets_along_normal(stack)):
        return [(stack, None)]
    for name in _SPLITTING:
        parts = _partition(stack, attrgetter(name))
        offsets = [offsets_along_normal(part) for part in parts]
        if (
            len(parts) > 1
            and len({len(o) for o in offsets}) == 1
            and np.allclose(offsets, offsets[0], rtol=0, atol=1e-3)
            and not repeats_position(offsets[0])
        ):
            return [(part, f"{name} {getattr(part[0], name)}") for part in parts]
    return [(stack, None)]


def _make_group(
    name: str,
    stack: list[SliceHeader],
    split: str | None,
    stacks: list[tuple[list[SliceHeader], str | None]],
    scan: FolderScan,
) -> SeriesGroup:
    first = stack[0]
    others = [other for other, _ in stacks if other is not stack]
    return SeriesGroup(
        folder=name,
        series_uid=first.series_uid,
        modality=first.modality,
        rows=first.rows,
        columns=first.columns,
        echo_time=first.echo_time,
        split_by=split,
        slices=tuple(stack),
        num_other_files=scan.num_other,
        doubts=tuple(folder_doubts(stack, others, scan)),
        remarks=_remarks(stack, [header for header in scan.headers if header.series_uid == first.series_uid]),
    )


def _remarks(stack: Sequence[SliceHeader], series: Sequence[SliceHeader]) -> tuple[str, ...]:
    """What a person should know of a series.

    ``derived_image``: computed from other images; ``no_magnitude``: phase, real or imaginary part; ``was_lossy``:
    compressed with loss at some time, unpacked since; ``text_burned_in``: its pixels may show a name;
    ``philips_scale``: its intensities need the scanner's own scale to be compared with those of other scans;
    ``part_of_series``: the series holds other images, such as a second echo; ``first_slices_absent``: its slices are
    numbered from more than 1 on, so that some may be lost.
    """
    numbers = [header.instance_number for header in series if header.instance_number is not None]
    found = {
        "derived_image": any((header.image_type or "").upper().startswith("DERIVED") for header in stack),
        "no_magnitude": any(_NO_MAGNITUDE & set((header.image_type or "").upper().split("\\")) for header in stack),
        "was_lossy": any(header.was_lossy == "01" for header in stack),
        "text_burned_in": any((header.burned_in or "").upper() == "YES" for header in stack),
        "philips_scale": any(header.philips_scale is not None for header in stack),
        "part_of_series": len(series) > len(stack),
        "first_slices_absent": bool(numbers) and min(numbers) > 1,
    }
    return tuple(name for name, holds in found.items() if holds)
