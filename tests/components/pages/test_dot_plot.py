"""An evaluation as dots against floors, in one figure."""

from __future__ import annotations

import pytest

from medical_diffusion_components.pages import dot_plot

CELL = {"value": 3.0, "se": 0.5, "floor": 1.0, "floor_sd": 0.25, "better": "lower"}


def report(**others: dict) -> dict:
    space = {"kid": CELL, "fd": {**CELL, "at_floor_n": 9.0}}
    volumes = {"ms_ssim": {**CELL, "better": "near_real", "real": 2.0}}
    row = {"anatomy": space, "slices_random": {"kid": CELL}, "volumes": volumes, **others}
    spaces = {"anatomy": {"counts": True}, "slices_random": {"counts": False}}
    return {"spaces": spaces, "rows": {"synthetic": row, "training": {"anatomy": {"kid": {**CELL, "value": 1.0}}}}}


def test_dots_intervals_and_floors_are_where_the_numbers_say() -> None:
    figure = dot_plot(report())
    panels = {axes.get_title(loc="left").split("\n")[-1]: axes for axes in figure.axes}
    assert list(panels) == ["kid ↓", "fd ↓", "ms_ssim → real"], "a space for comparison alone is not drawn"
    assert [axes.get_title(loc="left").split("\n")[0] for axes in figure.axes] == ["anatomy", "fd ↓", "volumes"]
    assert [text.get_text() for text in panels["ms_ssim → real"].get_yticklabels()] == ["synthetic"]
    kid = panels["kid ↓"]
    dots = [(line.get_xdata()[0], line.get_ydata()[0]) for line in kid.lines if line.get_marker() == "o"]
    assert dots == [(3.0, 0), (1.0, 1)]
    intervals = [bars.get_segments()[0][:, 0].tolist() for bars in kid.collections]
    assert intervals == [[2.0, 4.0], [0.0, 2.0]]
    band = kid.patches[0].get_extents().transformed(kid.transData.inverted())
    assert (band.x0, band.x1) == pytest.approx((0.5, 1.5))
    assert [text.get_text() for text in kid.get_yticklabels()] == ["synthetic", "training"]
    assert panels["fd ↓"].lines[0].get_xdata()[0] == 9.0, "at the floor's number of volumes"
    dashed = [line for line in panels["ms_ssim → real"].lines if line.get_linestyle() == "--"]
    assert dashed[0].get_xdata()[0] == 2.0


def test_cells_without_a_number_are_left_out() -> None:
    found = dot_plot(report(anatomy={"kid": CELL, "fd": {**CELL, "value": float("nan")}, "mmd": {**CELL, "se": None}}))
    assert len(found.axes) == 2
    empty = report(anatomy={}, volumes={})
    with pytest.raises(ValueError, match="no measure"):
        dot_plot(empty)
