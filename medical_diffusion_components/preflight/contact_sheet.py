"""Many cases on one picture, three small planes each, so that outliers are easy to see."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

__all__ = ["SheetCell", "contact_sheet"]

FRAME = "#ff5050"  # of outliers
_DPI = 100
_GAP, _LABEL, _TOP = 12, 16, 44  # pixels
_MOST_COLUMNS = 4
_LABEL_CHARACTER, _REASON_CHARACTER = 5.0, 4.6  # pixels


class SheetCell(NamedTuple):
    """One case: its name, its sagittal, coronal and axial picture as (height, width) bytes, and why it is framed."""

    label: str
    planes: tuple[np.ndarray, np.ndarray, np.ndarray]
    framed: str = ""


def contact_sheet(cells: Sequence[SheetCell], title: str = "") -> Figure:
    """Draw the cases row by row.

    Args:
        cells: pictures of one size; those with a reason in ``framed`` get a frame, and the reason below their name.
        title: text above all.

    Raises:
        ValueError: no case.
    """
    if not cells:
        raise ValueError("a contact sheet needs at least one case")
    height, width = cells[0].planes[0].shape
    columns = min(_MOST_COLUMNS, math.ceil(math.sqrt(len(cells))))
    rows = math.ceil(len(cells) / columns)
    cell_width, cell_height = 3 * width + _GAP, height + 2 * _LABEL + _GAP
    sheet = np.zeros((_TOP + rows * cell_height, columns * cell_width + _GAP), dtype=np.uint8)
    places = {}
    for number, cell in enumerate(cells):
        top, left = _TOP + number // columns * cell_height, _GAP + number % columns * cell_width
        places[number] = (top, left)
        for plane, picture in enumerate(cell.planes):
            start = left + plane * width
            sheet[top + 2 * _LABEL : top + 2 * _LABEL + height, start : start + width] = picture
    figure = Figure(figsize=(sheet.shape[1] / _DPI, sheet.shape[0] / _DPI), dpi=_DPI, facecolor="black")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.imshow(sheet, cmap="gray", vmin=0, vmax=255, interpolation="nearest", aspect="auto")
    axes.text(_GAP, 16, title, color="white", fontsize=9, va="center")
    for number, (top, left) in places.items():
        _write(axes, cells[number], top, left, 3 * width, height)
    return figure


def _write(axes, cell: SheetCell, top: int, left: int, width: int, height: int) -> None:  # type: ignore[no-untyped-def]
    label = _without_middle(cell.label, int(width / _LABEL_CHARACTER))
    axes.text(left, top + _LABEL / 2, label, color="white", fontsize=6.5, va="center", parse_math=False)
    if cell.framed:
        reason = _shortened(cell.framed, int(width / _REASON_CHARACTER))
        axes.text(left, top + 1.5 * _LABEL, reason, color=FRAME, fontsize=5.5, va="center", parse_math=False)
        frame = Rectangle((left - 3, top), width + 6, height + 2 * _LABEL + 3, fill=False, color=FRAME, linewidth=1.5)
        axes.add_patch(frame)


def _shortened(text: str, characters: int) -> str:
    """A reason that is too long, without what it says in brackets, or else cut off with dots."""
    if len(text) > characters:
        text = re.sub(r" \([^)]*\)?", "", text)
    return text if len(text) <= characters else f"{text[: characters - 3].rstrip(' ,;:')}..."


def _without_middle(text: str, characters: int) -> str:
    """Names of cases differ at both ends, so what is too long is shortened between them."""
    if len(text) <= characters:
        return text
    half = (characters - 3) // 2
    return f"{text[:half]}...{text[-half:]}"


def framed_first(framed: Mapping[str, str], others: Sequence[str], most: int) -> list[str]:
    """Which cases to show: those that are framed, then others spread evenly over all; ``most`` in the end."""
    shown = list(framed)[:most]
    left = [case for case in others if case not in framed]
    room = min(most - len(shown), len(left))
    return shown + [left[number * len(left) // room] for number in range(room)]
