"""Where the pictures of a contact sheet are, and which are framed."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.image import imread

from medical_diffusion_components.preflight.contact_sheet import SheetCell, _shortened, contact_sheet, framed_first
from medical_diffusion_components.preflight.look import Look
from medical_diffusion_components.preflight.survey import Survey


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


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("odd size 1 (median 2)", "odd size 1 (median 2)"),
        ("fits better when turned (likeness 0.997, not 0.992)", "fits better when turned"),
        ("likeness 0.29 (median 0.99) and 1 more", "likeness 0.29 and 1 more"),
        ("length to the front, which is long 168 mm", "length to the front, which..."),
    ],
)
def test_a_reason_that_is_too_long_ends_with_a_word(text, shown):
    assert _shortened(text, 29) == shown


def test_what_would_be_refused_is_framed():
    picture = np.zeros((40, 40), np.uint8)
    look = Look((picture,) * 3, (0.0,) * 5, np.zeros((12, 12, 12)))
    survey = Survey(looks={"good": look, "bad": look}, refused={"bad": "its transforms differ", "unread": "damaged"})
    assert {cell.label: cell.framed for cell in survey.cells()} == {"bad": "would be refused", "good": ""}


def test_no_case_is_no_sheet():
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet([])
