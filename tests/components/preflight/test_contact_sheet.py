"""Where the pictures of a contact sheet are, and which are framed."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.image import imread

from medical_diffusion_components.preflight.contact_sheet import SheetCell, contact_sheet, framed_first


def drawn(figure):
    file = io.BytesIO()
    figure.savefig(file, format="png", facecolor="black")
    file.seek(0)
    return imread(file)[..., :3]


def test_every_picture_stands_once_and_only_outliers_are_framed():
    greys = iter(np.linspace(60, 240, 15).round().astype(int))
    cells = [
        SheetCell("", tuple(np.full((40, 40), next(greys), np.uint8) for _ in range(3)), "odd" if n == 3 else "")
        for n in range(5)
    ]
    picture = drawn(contact_sheet(cells))
    grey = np.isclose(picture, picture[..., :1]).all(axis=2)
    values, counts = np.unique(np.round(picture[grey][:, 0] * 255), return_counts=True)
    for cell in cells:
        for plane in cell.planes:
            assert counts[values == plane[0, 0]].sum() >= 38 * 38
    red = np.argwhere((picture[..., 0] > 0.9) & (picture[..., 1] < 0.4))
    assert red[:, 0].max() - red[:, 0].min() >= 40 and red[:, 1].max() - red[:, 1].min() >= 120
    place = np.argwhere(np.isclose(picture[..., 0] * 255, cells[3].planes[0][0, 0], atol=0.5))
    assert red.min(0)[0] < place.min(0)[0] and red.max(0)[0] > place.max(0)[0]


def test_the_framed_come_first_and_the_others_are_spread():
    assert framed_first({"x": ""}, ["a", "b", "x", "c", "d"], 3) == ["x", "a", "c"]
    assert framed_first({}, list("abc"), 10) == list("abc")


def test_no_case_is_no_sheet():
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet([])
