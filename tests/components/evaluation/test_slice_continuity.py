from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.stats import ks_2samp

from medical_diffusion_components.evaluation.slice_continuity import continuity_distance, slice_correlations


def smooth(seed: int) -> np.ndarray:
    return gaussian_filter(np.random.default_rng(seed).normal(size=(8, 10, 12)), 2)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_each_slice_is_correlated_with_the_next(axis: int) -> None:
    volume = smooth(0)
    slices = np.moveaxis(volume, axis, 0)
    expected = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in pairwise(slices)]
    assert slice_correlations(volume, axis) == pytest.approx(expected)


def test_constant_slices_fit_each_other_and_nothing_else() -> None:
    volume = smooth(1)
    volume[:3] = -1.0
    assert slice_correlations(volume, 0)[:3].tolist() == [1, 1, 0]


def test_the_distance_is_the_mean_kolmogorov_smirnov_statistic() -> None:
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(9, 5)).round(1), rng.normal(0.4, 1, size=(14, 5)).round(1)  # rounded: with ties
    expected = np.mean([ks_2samp(a, b).statistic for a, b in zip(x.T, y.T)])
    assert continuity_distance(x, y) == pytest.approx(expected)
    assert continuity_distance(x, x) == pytest.approx(0, abs=1e-12)


def test_shuffled_slices_read_near_one() -> None:
    def profiles(seeds: range, shuffled: bool) -> np.ndarray:
        volumes = [smooth(seed) for seed in seeds]
        if shuffled:
            volumes = [v[np.random.default_rng(i).permutation(8)] for i, v in enumerate(volumes)]
        return np.stack([slice_correlations(v, 0) for v in volumes])

    real = profiles(range(20), shuffled=False)
    assert continuity_distance(profiles(range(20, 40), shuffled=False), real) < 0.4
    assert continuity_distance(profiles(range(20, 40), shuffled=True), real) > 0.6
