"""Every measure of an evaluation as dots with intervals against its floor, in one figure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from medical_diffusion_components.pages.page import compared, drawable

__all__ = ["dot_plot"]

WIDTH, HEIGHT, MARGIN = 2.6, 0.22, 0.75  # inches: of a panel, of a row in it, around its rows
ARROWS = {"lower": "↓", "higher": "↑", "near_one": "→ 1", "near_real": "→ real"}


def dot_plot(report: Mapping[str, Any]) -> Figure:
    """Panels of dots: a column for each space that judges and one for measures of volumes, a row for each measure.

    A dot is a value, its line two standard errors; the band is the floor with two standard deviations, the dashed line
    the real value. Values that depend on the number of volumes are those at the floor's number. Cells without a value, an
    error or a floor are left out.

    Args:
        report: content of ``evaluation.json``.

    Raises:
        ValueError: nothing to draw.
    """
    rows, spaces = report["rows"], report["spaces"]
    columns = [space for space in rows["synthetic"] if space not in spaces or spaces[space]["counts"]]
    panels = {
        (space, measure): cells
        for space in columns
        for measure in rows["synthetic"][space]
        if (cells := drawable({row: one[space][measure] for row, one in rows.items() if measure in one.get(space, {})}))
    }
    if not panels:
        raise ValueError("the evaluation has no measure with a value, an error and a floor")
    placed = {space: [measure for one, measure in panels if one == space] for space in columns}
    columns = [space for space in columns if placed[space]]
    longest = max(len(measures) for measures in placed.values())
    figure = Figure(
        figsize=(WIDTH * len(columns) + 1.2, (HEIGHT * len(rows) + MARGIN) * longest + 0.6),
        dpi=110,
        layout="constrained",
    )
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(longest, len(columns))
    for column, space in enumerate(columns):
        for place, measure in enumerate(placed[space]):
            axes = figure.add_subplot(grid[place, column])
            cells = panels[space, measure]
            _panel(axes, measure, cells, named=column == 0 or len(cells) < len(rows))
            if place == 0:
                axes.set_title(f"{space}\n{axes.get_title(loc='left')}", fontsize=8, loc="left")
    figure.suptitle("value ± 2 standard errors; green: floor ± 2 SD; dashed: real", fontsize=9)
    return figure


def _panel(axes: Axes, measure: str, cells: Mapping[str, Mapping[str, Any]], named: bool) -> None:
    some = next(iter(cells.values()))
    axes.axvspan(
        some["floor"] - 2 * some["floor_sd"], some["floor"] + 2 * some["floor_sd"], color="#2e9e5b", alpha=0.25
    )
    if "real" in some:
        axes.axvline(some["real"], color="0.4", linestyle="--", linewidth=1)
    for place, cell in enumerate(cells.values()):
        axes.errorbar(compared(cell), place, xerr=2 * cell["se"], fmt="o", color="#1f6feb", markersize=4, linewidth=1.5)
    axes.set_ylim(len(cells) - 0.5, -0.5)
    names = [row.replace("_", " ") for row in cells]
    axes.set_yticks(range(len(cells)), names if named else [""] * len(names), fontsize=7)
    axes.tick_params(axis="x", labelsize=7)
    axes.locator_params(axis="x", nbins=4)
    axes.set_title(f"{measure} {ARROWS[some['better']]}", fontsize=8, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
