"""Membranes against dense solutions and closed forms; steps at a border by hand."""

from __future__ import annotations

import numpy as np
import pytest

from medical_diffusion_components.editing import blended, filled, membrane, seam


def region(shape: tuple[int, int, int]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[2:5, 1:6, 3:6] = True
    mask[2, 1, 3] = False
    return mask


def test_a_membrane_continues_a_slope_exactly_whatever_stands_inside() -> None:
    values = 2.0 * np.indices((8, 9, 10))[0] - 0.5 * np.indices((8, 9, 10))[2]
    mask = region(values.shape)
    spoiled = np.where(mask, 1e6, values)
    np.testing.assert_allclose(filled(spoiled, mask, (1.0, 2.0, 0.5)), values, atol=1e-3)
    assert (filled(spoiled, mask)[~mask] == values[~mask]).all()


def test_a_membrane_solves_its_equation_at_every_voxel() -> None:
    rng, spacing = np.random.default_rng(0), (0.7, 1.0, 2.0)
    values = rng.normal(size=(7, 8, 9))
    mask = region(values.shape)
    mask[0, 0, :2] = True  # at the volume's face, where there is no slope
    values[mask] = membrane(values, mask, spacing)
    for voxel in np.argwhere(mask):
        bend = 0.0
        for axis in range(3):
            for step in (-1, 1):
                other = voxel.copy()
                other[axis] += step
                if 0 <= other[axis] < mask.shape[axis]:
                    bend += (values[tuple(other)] - values[tuple(voxel)]) / spacing[axis] ** 2
        assert bend == pytest.approx(0.0, abs=1e-4)


def test_a_correction_meets_the_scan_and_keeps_what_was_drawn() -> None:
    drawn = np.random.default_rng(1).normal(size=(8, 9, 10))
    mask = region(drawn.shape)
    np.testing.assert_allclose(blended(drawn + 3.0, drawn, mask), drawn[mask] + 3.0, atol=1e-4)


def test_near_the_border_the_result_is_the_scans_own_membrane() -> None:
    values, drawn = np.random.default_rng(2).normal(size=(2, 21, 21, 21))
    mask = np.zeros(values.shape, bool)
    mask[3:18, 3:18, 3:18] = True
    result, plain, smooth = (np.zeros(mask.shape) for _ in range(3))
    result[mask] = blended(values, drawn, mask, length=1.0)
    plain[mask], smooth[mask] = blended(values, drawn, mask), membrane(values, mask)
    share = np.exp(-0.5)  # half a voxel from the border
    np.testing.assert_allclose(result[3, 10, 10], share * smooth[3, 10, 10] + (1 - share) * plain[3, 10, 10], atol=1e-6)
    assert abs(result - plain)[10, 10, 10] < 0.01 * abs(smooth - plain)[10, 10, 10]


def test_steps_at_a_border_are_counted_by_hand() -> None:
    volume = np.zeros((6, 1, 1))
    volume[:, 0, 0] = [0, 1, 5, 7, 10, 20]
    mask = np.zeros(volume.shape, bool)
    mask[2:4] = True
    found = seam(volume, mask)
    assert found.across == (4 + 3) / 2 and found.beside == (1 + 10) / 2


def test_a_voxel_between_two_regions_has_nothing_known_beside_it() -> None:
    """One known voxel with the region on both sides: no step lies outside, as at a border alone."""
    mask = np.zeros((5, 1, 1), bool)
    mask[[0, 1, 3, 4]] = True
    volume = np.array([1.0, 2, 4, 8, 16]).reshape(5, 1, 1)
    found = seam(volume, mask)
    assert found.across == (2 + 4) / 2 and np.isnan(found.beside)
