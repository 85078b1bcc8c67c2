from __future__ import annotations

import torch
from monai.data import MetaTensor

from medical_diffusion_components.preparation.steps.fill_padding import FillPadding
from medical_diffusion_components.preparation.steps.load_scan import PADDING_KEY


def ct(values, padding=None):
    return MetaTensor(torch.tensor(values).reshape(1, 2, 1, 3), meta={PADDING_KEY: padding})


def test_what_lies_below_air_becomes_air_with_or_without_a_word_in_the_header():
    for padding in (None, -3024.0, -2000.0):
        got = FillPadding()(ct([-3024.0, -2000.0, -1000.5, -999.0, 40.0, 1500.0], padding))
        assert got.flatten().tolist() == [-1000, -1000, -1000, -999, 40, 1500]


def test_a_padding_value_among_tissues_is_filled_when_the_header_names_it():
    got = FillPadding(air=-1024)(ct([-1024.0, 3071.0, 40.0, 3071.0, 3070.0, 0.0], 3071.0))
    assert got.flatten().tolist() == [-1024, -1024, 40, -1024, 3070, 0]


def test_the_volume_that_came_is_not_changed():
    img = ct([-2000.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    FillPadding()(img)
    assert img.min() == -2000
