from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medical_diffusion_components.preparation.steps.fill_padding import FillPadding
from medical_diffusion_components.preparation.steps.load_scan import PADDING_KEY, PADDING_LIMIT_KEY
from medical_diffusion_components.transforms.volume_error import VolumeError


def ct(values, padding=None):
    return MetaTensor(torch.tensor(values).reshape(1, 2, 1, 3), meta={PADDING_KEY: padding})


def test_what_lies_below_air_becomes_air_with_or_without_a_word_in_the_header():
    for padding in (None, -3024.0, -2000.0):
        got = FillPadding(air=-1000.0)(ct([-3024.0, -2000.0, -1000.5, -999.0, 40.0, 1500.0], padding))
        assert got.flatten().tolist() == [-1000, -1000, -1000, -999, 40, 1500]


def test_a_padding_value_among_tissues_is_filled_when_the_header_names_it():
    got = FillPadding(air=-1024)(ct([-1024.0, 3071.0, 40.0, 3071.0, 3070.0, 0.0], 3071.0))
    assert got.flatten().tolist() == [-1024, -1024, 40, -1024, 3070, 0]


def test_the_volume_that_came_is_not_changed():
    img = ct([-2000.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    FillPadding(air=-1000.0)(img)
    assert img.min() == -2000


def scan(padding=None, limit=None, value=-32768.0):
    values = torch.arange(1000.0).reshape(1, 10, 10, 10) + 5
    values[:, :2] = value
    return MetaTensor(values, meta={PADDING_KEY: padding, PADDING_LIMIT_KEY: limit})


def test_without_a_value_for_air_padding_becomes_the_lowest_intensity_that_was_measured():
    for padding in (-32768.0, None):  # named by the header, or far below all others
        got = FillPadding()(scan(padding))
        assert got.min() == 205 and (got[:, :2] == 205).all()
        assert torch.equal(got[:, 2:], scan()[:, 2:])


def test_all_values_between_the_padding_value_and_its_limit_are_padding():
    img = scan(-30.0, -10.0, value=-20.0)
    img[0, 9, 9, 9] = -9.0
    assert FillPadding()(img).min() == -9


def test_a_background_of_zeros_or_a_single_dark_voxel_is_no_padding():
    for img in (scan(value=0.0), scan(value=-100.0)):
        assert FillPadding()(img) is img
    lone = scan(value=7.0)
    lone[0, 9, 9, 9] = -32768
    assert FillPadding()(lone) is lone


def test_zeros_are_a_background_however_far_below_all_others():
    values = 1000 + torch.arange(1000.0).reshape(1, 10, 10, 10) / 100
    values[:, :2] = 0
    zeros = MetaTensor(values, meta={PADDING_KEY: None, PADDING_LIMIT_KEY: None})
    assert FillPadding()(zeros) is zeros
    assert FillPadding()(zeros - 1).min() > 1000  # and below zero the same is padding


def test_a_scan_of_padding_alone_is_refused():
    with pytest.raises(VolumeError, match="every voxel is padding"):
        FillPadding()(MetaTensor(torch.full((1, 3, 3, 3), -5.0), meta={PADDING_KEY: -5.0}))


def test_a_number_far_above_all_others_is_padding_with_and_without_a_value_for_air():
    body = np.random.default_rng(0).integers(0, 900, (1, 8, 8, 8)).astype(np.float32)
    for air, highest in ((None, 65535.0), (-1000.0, 32767.0)):
        padded = body.copy()
        padded[:, :2, :2] = highest
        filled = FillPadding(air)(MetaTensor(padded)).numpy()
        assert (filled[:, :2, :2] == (body.min() if air is None else air)).all()
        np.testing.assert_array_equal(filled[:, 2:], body[:, 2:])


def test_many_voxels_that_are_no_number_are_padding_and_a_few_are_left_to_be_refused():
    body = np.random.default_rng(0).integers(-5, 900, (1, 20, 20, 20)).astype(np.float32)
    for air in (None, -1000.0):
        padded = body.copy()
        padded[:, :4] = np.nan
        filled = FillPadding(air)(MetaTensor(padded)).numpy()
        assert (filled[:, :4] == (body[:, 4:].min() if air is None else air)).all()
        padded = body.copy()
        padded[0, 3, 3, 3] = np.nan
        assert np.isnan(FillPadding(air)(MetaTensor(padded)).numpy()).sum() == 1


def test_a_saturated_maximum_is_no_padding():
    body = np.random.default_rng(0).integers(0, 65000, (1, 8, 8, 8)).astype(np.float32)
    body[:, :3, :3] = 65535
    np.testing.assert_array_equal(FillPadding()(MetaTensor(body)).numpy(), body)


def test_negative_numbers_without_their_sign_are_refused():
    body = np.random.default_rng(0).integers(-300, 900, (1, 8, 8, 8))
    with pytest.raises(VolumeError, match="negative numbers without their sign"):
        FillPadding()(MetaTensor((body % 65536).astype(np.float32)))
    np.testing.assert_array_equal(FillPadding()(MetaTensor(body.astype(np.float32))).numpy(), body)
