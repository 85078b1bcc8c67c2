from __future__ import annotations

import numpy as np
import pytest

from medical_diffusion_components.metrics.jackknife import group_jackknife, jackknife

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


def test_leaving_out_groups_of_one_is_the_plain_jackknife() -> None:
    values = np.random.default_rng(0).normal(size=12)
    plain = jackknife(lambda kept: values[kept].mean(), 12)
    assert group_jackknife(lambda kept: values[kept].mean(), np.arange(12)) == pytest.approx(plain)


def test_repeated_members_of_a_group_do_not_lower_the_error() -> None:
    values = np.random.default_rng(1).normal(size=12)
    once = group_jackknife(lambda kept: values[kept].mean(), np.arange(12))
    four_times = np.repeat(values, 4)
    grouped = group_jackknife(lambda kept: four_times[kept].mean(), np.repeat(np.arange(12), 4))
    assert grouped.error == pytest.approx(once.error)
    assert group_jackknife(lambda kept: four_times[kept].mean(), np.arange(48), most=48).error < 0.6 * once.error


def test_many_groups_are_joined_to_twenty() -> None:
    values = np.random.default_rng(2).normal(size=1000)
    calls = []
    found = group_jackknife(lambda kept: (calls.append(1), values[kept].mean())[1], np.arange(1000))
    assert len(calls) == 21
    assert found.error == pytest.approx(values.std() / 1000**0.5, rel=0.4)


def test_one_group_has_no_error() -> None:
    with pytest.raises(ValueError, match="two or more groups, got 1"):
        group_jackknife(lambda kept: 0.0, np.zeros(5, int))
