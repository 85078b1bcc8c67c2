from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from medical_diffusion_components.metrics.bootstrap import bootstrap_mean


def test_interval_of_one_seed_is_that_of_the_mean_of_its_cases() -> None:
    values = np.random.default_rng(1).normal(0.7, 0.05, (1, 200))
    found = bootstrap_mean(values)
    half = norm.ppf(0.975) * values.std() / np.sqrt(values.size)
    assert found.mean == pytest.approx(values.mean())
    np.testing.assert_allclose([found.low, found.high], [values.mean() - half, values.mean() + half], atol=0.15 * half)


def test_seeds_that_differ_widen_the_interval() -> None:
    """Two hundred cases do not make up for three seeds: variance of the mean of the rows, resampled."""
    rows = np.array([[0.6], [0.7], [0.8]])
    values = rows + np.zeros((3, 200))
    found = bootstrap_mean(values, resamples=20000)
    assert found.high - found.low > 0.12
    assert bootstrap_mean(values.mean(0, keepdims=True)).low == pytest.approx(0.7)


def test_the_interval_of_runs_and_patients_adds_the_variance_of_both() -> None:
    """In a table of sums a_i + b_j the mean of R rows and C columns has the variance var(a) / R + var(b) / C."""
    rng = np.random.default_rng(2)
    rows, columns = rng.normal(0, 0.3, (25, 1)), rng.normal(0.7, 0.4, (1, 60))
    found = bootstrap_mean(rows + columns, resamples=8000)
    half = norm.ppf(0.975) * np.sqrt(rows.var() / 25 + columns.var() / 60)
    np.testing.assert_allclose([found.mean - found.low, found.high - found.mean], [half, half], rtol=0.08)


def test_values_without_two_dimensions_are_refused() -> None:
    for values in (np.zeros(3), np.zeros((0, 3))):
        with pytest.raises(ValueError, match=r"expected values \(runs, patients\)"):
            bootstrap_mean(values)
