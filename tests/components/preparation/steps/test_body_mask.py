from __future__ import annotations

import numpy as np
import pytest
from skimage.filters import threshold_otsu

from medical_diffusion_components.preparation.steps.body_mask import body_mask, large_objects, otsu_threshold


def test_the_threshold_is_scikit_images():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(10, 3, 4000), rng.normal(60, 12, 2500)])
    values = np.clip(values, None, np.percentile(values, 99.5))
    assert otsu_threshold(values) == pytest.approx(threshold_otsu(values), abs=np.ptp(values) / 256)


def test_the_threshold_between_two_values_lies_between_them_and_a_single_value_has_none():
    assert 0 < otsu_threshold(np.array([0.0] * 90 + [1.0] * 10)) < 1
    with pytest.raises(ValueError, match="got 3 throughout"):
        otsu_threshold(np.full(10, 3.0))


def test_objects_are_kept_by_their_share_of_the_largest():
    mask = np.zeros((6, 5, 4), dtype=bool)
    mask[0, :4, 0] = mask[2, :2, 1] = mask[4, 0, 3] = True  # 4, 2 and 1 voxels; the corners of two touch at most
    mask[1, 4, 0] = True  # one more, which touches the largest along an edge alone
    sizes = [large_objects(mask, smallest).sum() for smallest in (1.0, 0.5, 0.25)]
    assert sizes == [4, 6, 8]
    assert large_objects(mask[0], 1.0).sum() == 4 and not large_objects(np.zeros((3, 2), bool)).any()


def scene():
    """An ellipsoid with a cavity, a shell around it, and something beside them."""
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in (40, 50, 30)], indexing="ij")
    radius = np.sqrt(x**2 + y**2 + z**2)
    core, shell = radius < 0.6, (radius > 0.75) & (radius < 0.85)
    volume = np.where(core | shell, 100.0, 5.0)
    volume[18:22, 22:28, 13:17] = 5
    volume[:4, :4, :4] = 100
    return volume + np.random.default_rng(0).normal(0, 4, volume.shape), core, radius < 0.85


def test_the_body_is_the_largest_object_with_its_cavities():
    volume, core, _ = scene()
    got = body_mask(volume)
    assert not (got & ~core).any() and got.sum() > 0.98 * core.sum() and got[20, 25, 15]


def test_smaller_objects_count_with_what_they_enclose_when_they_are_large_enough():
    volume, _, whole = scene()
    got = body_mask(volume, smallest=0.2)
    assert not (got & ~whole).any() and got.sum() > 0.97 * whole.sum()
