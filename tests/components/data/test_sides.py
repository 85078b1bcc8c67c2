from __future__ import annotations

import logging

import pytest

from medical_diffusion_components.data import axes_to_flip, sided_classes


def test_sides_are_words_of_a_name_and_no_parts_of_words() -> None:
    sided = ["Left-Hippocampus", "lung_R", "ctx-lh-insula", "rightVentricle", "L kidney", "kidney (left)", "RKidney2_l"]
    others = ["background", "liver", "cleft", "bright spot", "grey matter", "upright", "lesion", "CSF", "copyright"]
    assert sided_classes([*others, *sided]) == sided


def test_sides_are_known_however_people_and_tools_write_them() -> None:
    sided = [
        "leftkidney",
        "KIDNEYLEFT",
        "Lunge links",
        "rechte Niere",
        "rein gauche",
        "pulmón izquierdo",
        "rene destro",
    ]
    sided += [
        "hippocampus_lh",
        "Kidney-Rt",
        "LUL",
        "lung RML",
        "LV myocardium",
        "arteria carotis dextra",
        "kidneyR",
        "1_left",
    ]
    others = ["Herz", "Niere", "Leber", "foie", "lunge", "rectum", "rim", "bright_T2", "leftover"]
    assert sided_classes([*others, *sided]) == sided


@pytest.mark.parametrize(("axcodes", "kept"), [("RAS", [1, 2]), ("LPS", [1, 2]), ("PSR", [0, 1]), ("ARS", [0, 2])])
def test_only_the_axis_from_left_to_right_is_left_out_and_a_remark_says_so(
    axcodes: str, kept: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert axes_to_flip([0, 1, 2], {"background": 0, "left lung": 1, "right lung": 2}, axcodes) == kept
    assert "left-right" in caplog.text and "left lung, right lung" in caplog.text


def test_without_sides_every_axis_is_flipped(caplog: pytest.LogCaptureFixture) -> None:
    assert axes_to_flip([0, 2], {"background": 0, "tumour": 1}) == [0, 2]
    assert axes_to_flip([2], {"background": 0, "left lung": 1}) == [2]
    assert not caplog.text
