from __future__ import annotations

import numpy as np
import pytest

from medical_diffusion_components.metrics.jackknife import jackknife

RNG = np.random.default_rng(0)


def test_error_of_a_mean_is_the_standard_error():
    values = RNG.normal(size=13)
    found = jackknife(lambda kept: values[kept].mean(), 13)
    assert found.value == pytest.approx(values.mean())
    assert found.error == pytest.approx(values.std(ddof=1) / 13**0.5)


def test_errors_of_independent_samples_add_up_as_squares():
    one, other = RNG.normal(size=7), RNG.exponential(size=11)
    found = jackknife(lambda x, y: one[x].mean() - other[y].mean(), 7, 11)
    assert found.error == pytest.approx((one.var(ddof=1) / 7 + other.var(ddof=1) / 11) ** 0.5)


def test_what_two_methods_have_in_common_cancels_in_their_difference():
    shared = RNG.normal(size=9)
    assert jackknife(lambda kept: (shared + 1)[kept].mean() - shared[kept].mean(), 9).error == pytest.approx(
        0, abs=1e-12
    )


def test_error_of_a_mean_of_pairs_is_close_to_the_spread_over_repetitions():
    def mean_product(x: np.ndarray) -> float:
        return (x.sum() ** 2 - (x**2).sum()) / (len(x) * (len(x) - 1))

    draws = RNG.normal(1.0, 1.0, size=(400, 20))
    errors = [jackknife(lambda kept, x=x: mean_product(x[kept]), 20).error for x in draws]
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std([mean_product(x) for x in draws]), rel=0.15)


@pytest.mark.parametrize("sizes", [(), (5, 1)])
def test_samples_of_one_have_no_error(sizes):
    with pytest.raises(ValueError, match="two or more members"):
        jackknife(lambda *kept: 0.0, *sizes)
