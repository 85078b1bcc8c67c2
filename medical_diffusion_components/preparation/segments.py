"""Which label means what in a segmentation file of 3D Slicer (``.seg.nrrd``), from its header alone.

Label values are not the same from file to file: the header's ``SegmentN_Name``, ``SegmentN_LabelValue`` and
``SegmentN_Layer`` say which voxels belong to which segment. Segments that overlap lie in different layers,
and the image is then 4D with a ``list`` axis. Format: "Segmentations" in 3D Slicer's developer guide;
NRRD0005.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

__all__ = ["Segment", "SegmentTable", "read_nrrd_header", "read_segments"]

# A header holds some text lines per segment; what is longer is no header.
_MAX_HEADER_BYTES = 1 << 20
_FIELD = re.compile(r"([^:]+?)(:=|: ?)(.*)")
_SEGMENT_NAME = re.compile(r"Segment(\d+)_Name")


class Segment(NamedTuple):
    """One named segment: the voxels of ``layer`` whose value is ``value``."""

    name: str
    value: int
    layer: int


class _Grid(NamedTuple):
    num_layers: int
    shape: tuple[int, int, int]


class SegmentTable(NamedTuple):
    """The segments of a file.

    Attributes:
        segments: in the order of their numbers in the header.
        num_layers: length of the ``list`` axis; 1 for a 3D file.
        shape: voxels along the three spatial axes, in the file's order.
    """

    segments: tuple[Segment, ...]
    num_layers: int
    shape: tuple[int, int, int]


def read_nrrd_header(path: str | os.PathLike) -> dict[str, str]:
    """The fields and key-value pairs of a NRRD header; the voxels are not read.

    Raises:
        ValueError: no NRRD magic, no end of the header, or a line that is neither field, pair nor comment.
    """
    path = Path(path)
    with path.open("rb") as file:
        start = file.read(8)
        if not re.fullmatch(rb"NRRD\d{4}", start):
            raise ValueError(f"{path}: not a NRRD file: expected it to start with 'NRRD000.', got {start!r}")
        read = start + file.read(_MAX_HEADER_BYTES)
    head, blank_line, _ = read.replace(b"\r\n", b"\n").partition(b"\n\n")
    is_detached = re.search(rb"^data ?file:", head, re.MULTILINE) is not None  # such a header ends with its file
    if not blank_line and not is_detached:
        raise ValueError(f"{path}: the NRRD header has no end (no blank line in {len(read)} bytes)")
    header: dict[str, str] = {}
    for number, line in enumerate(head.decode("utf-8", errors="replace").rstrip("\n").split("\n")[1:], start=2):
        if line.startswith("#"):
            continue
        field = _FIELD.fullmatch(line)
        if field is None:
            raise ValueError(f"{path}: line {number} of the NRRD header is neither field nor pair: {line[:80]!r}")
        if field[1] in header:
            raise ValueError(f"{path}: {field[1]!r} stands twice in the NRRD header")
        header[field[1]] = field[3].strip()
    return header


def read_segments(path: str | os.PathLike) -> SegmentTable:
    """Name, label value and layer of each segment of a ``.seg.nrrd``.

    Raises:
        ValueError: not a 3D or 4D segmentation; a segment without label value, or, in a 4D file, without
            layer; a layer that the file does not have; two segments of one name, or with the same voxels.
    """
    header = read_nrrd_header(path)
    num_layers, shape = _grid(header, path)
    numbers = sorted(int(match[1]) for key in header if (match := _SEGMENT_NAME.fullmatch(key)))
    if not numbers:
        raise ValueError(f"{path}: the header names no segment (no 'SegmentN_Name')")
    segments = []
    for number in numbers:
        name = header[f"Segment{number}_Name"]
        value = _integer(header, f"Segment{number}_LabelValue", path)
        # Only a 3D file may leave the layer out: it has one.
        key = f"Segment{number}_Layer"
        layer = 0 if num_layers == 1 and key not in header else _integer(header, key, path)
        if value < 1:
            raise ValueError(f"{path}: segment {name!r}: expected a label value of at least 1, got {value}")
        if not 0 <= layer < num_layers:
            raise ValueError(f"{path}: segment {name!r} is in layer {layer}, the file has {num_layers}")
        segments.append(Segment(name, value, layer))
    if len({segment.name for segment in segments}) < len(segments):
        raise ValueError(f"{path}: two segments have one name: {[segment.name for segment in segments]}")
    if len({segment[1:] for segment in segments}) < len(segments):
        raise ValueError(f"{path}: two segments share value and layer: {segments}")
    return SegmentTable(tuple(segments), num_layers, shape)


def _grid(header: dict[str, str], path: str | os.PathLike) -> _Grid:
    try:
        sizes = [int(size) for size in header["sizes"].split()]
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path}: expected 'sizes: ' with whole numbers, got {header.get('sizes')!r}") from error
    if len(sizes) == 3:
        return _Grid(1, (sizes[0], sizes[1], sizes[2]))
    kinds = header.get("kinds", "").split()
    if len(sizes) != 4 or len(kinds) != 4 or kinds.count("list") != 1:
        raise ValueError(f"{path}: expected 3 axes, or 4 of which one is a list; got sizes {sizes}, kinds {kinds}")
    axis = kinds.index("list")
    first, second, third = sizes[:axis] + sizes[axis + 1 :]
    return _Grid(sizes[axis], (first, second, third))


def _integer(header: dict[str, str], key: str, path: str | os.PathLike) -> int:
    text = header.get(key)
    if text is None or not text.isdecimal():
        raise ValueError(f"{path}: expected a whole number under {key!r}, got {text!r}")
    return int(text)
