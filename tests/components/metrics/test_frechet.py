from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import sqrtm

from medical_diffusion_components.metrics import frechet_distance


def by_square_root(x: np.ndarray, y: np.ndarray) -> float:
    """The textbook's form, where there are more members than features."""
    one, other = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    return float(np.square(x.mean(0) - y.mean(0)).sum() + np.trace(one + other - 2 * sqrtm(one @ other).real))


@pytest.mark.parametrize(("n", "m"), [(40, 30), (30, 90)])
def test_it_equals_the_form_with_a_matrix_square_root(n: int, m: int) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(n, 7)) @ rng.normal(size=(7, 7)), rng.normal(size=(m, 7)) + 0.5
    found = frechet_distance(x, y)
    assert found.value == pytest.approx(by_square_root(x, y), rel=1e-9)
    assert found.value == found.mean_term + found.covariance_term
    assert found.mean_term == pytest.approx(np.square(x.mean(0) - y.mean(0)).sum())


def test_equal_sets_are_never_less_than_nothing_apart() -> None:
    for seed in range(20):
        x = np.random.default_rng(seed).normal(size=(30, 5))
        assert 0 <= frechet_distance(x, x.copy()).covariance_term < 1e-9


def test_for_known_gaussians_it_is_the_closed_form() -> None:
    rng, shift, scale = np.random.default_rng(1), np.array([0.3, -0.2, 0.0]), 1.5
    x, y = rng.normal(size=(200_000, 3)), shift + scale * rng.normal(size=(200_000, 3))
    expected = np.square(shift).sum() + 3 * (1 - scale) ** 2
    assert frechet_distance(x, y).value == pytest.approx(expected, rel=0.02)


def test_with_fewer_members_than_features_it_is_defined_and_zero_for_equal_sets() -> None:
    x = np.random.default_rng(2).normal(size=(6, 50))
    assert frechet_distance(x, x).value == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x, x + 2).mean_term == pytest.approx(50 * 4)
    assert frechet_distance(x, x + 2).covariance_term == pytest.approx(0, abs=1e-9)


def test_it_is_biased_upwards_for_few_members() -> None:
    rng = np.random.default_rng(3)
    few, many = (np.mean([frechet_distance(*rng.normal(size=(2, n, 20))).value for _ in range(5)]) for n in (10, 200))
    assert few > 5 * many > 0


@pytest.mark.parametrize(("x", "y"), [(np.zeros((3, 2)), np.zeros((3, 3))), (np.zeros((1, 2)), np.zeros((3, 2)))])
def test_sets_that_do_not_fit_are_refused(x: np.ndarray, y: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"expected features \(n, F\) and \(m, F\)"):
        frechet_distance(x, y)
