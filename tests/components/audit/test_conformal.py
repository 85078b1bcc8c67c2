"""The p-value of a volume and what the p-values say about a model."""

from __future__ import annotations

import numpy as np
import pytest

from medical_diffusion_components.audit import clopper_pearson, conformal_p, flagged_share, smallest_calibration


def test_p_counts_held_out_patients_at_least_as_similar() -> None:
    calibration, scores = np.array([0.1, 0.5, 0.5, 0.9]), np.array([0.95, 0.9, 0.5, 0.4, 0.0])
    expected = [(1 + sum(held_out >= score for held_out in calibration)) / 5 for score in scores]
    np.testing.assert_allclose(conformal_p(scores, calibration), expected)


def test_innocent_volumes_are_flagged_as_often_as_alpha_says_whatever_the_similarity() -> None:
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(400):
        drawn = rng.gamma(0.3, size=139) ** 2  # far from normal
        shares.append((conformal_p(drawn[:100], drawn[100:]) <= 0.05).mean())
    assert np.mean(shares) == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize(("alpha", "needed"), [(0.05, 19), (0.1, 9), (0.01, 99)])
def test_fewest_patients_with_which_anything_can_be_flagged(alpha: float, needed: int) -> None:
    assert smallest_calibration(alpha) == needed
    assert conformal_p(np.array([2.0]), np.zeros(needed))[0] <= alpha + 1e-12
    assert conformal_p(np.array([2.0]), np.zeros(needed - 1))[0] > alpha


def test_clopper_pearson_of_the_closed_forms() -> None:
    assert clopper_pearson(0, 10) == pytest.approx((0, 1 - 0.025**0.1))
    assert clopper_pearson(10, 10) == pytest.approx((0.025**0.1, 1))


def test_estimate_of_copies_of_a_mixture() -> None:
    p_values = np.concatenate([np.full(40, 0.01), np.linspace(0.0505, 1, 60)])
    found = flagged_share(p_values, 0.05, 100)
    assert (found.flagged, found.volumes, found.share) == (40, 100, 0.4)
    assert found.copies == pytest.approx((0.4 - 0.05) / 0.95)
    assert found.copies_interval[0] < 0.35 / 0.95 < found.copies_interval[1]
    assert flagged_share(np.ones(5), 0.05, 19).copies == 0


@pytest.mark.slow
def test_p_value_of_a_model_accounts_for_the_one_calibration_set_and_the_binomial_does_not() -> None:
    """Innocent models: the beta-binomial p is below 0.05 in at most 5 % of them, the textbook's in more."""
    rng = np.random.default_rng(1)
    exact, binomial, shares = [], [], []
    for _ in range(600):
        found = flagged_share(conformal_p(rng.normal(size=200), rng.normal(size=39)), 0.05, 39)
        exact.append(found.p_value)
        binomial.append(found.p_binomial)
        shares.append(found.share)
    assert np.mean(np.array(exact) <= 0.05) <= 0.07
    assert np.mean(np.array(binomial) <= 0.05) > 0.12
    counts = 200 * np.array(shares)
    for count in (10, 20, 30):  # how often so many or more are flagged, against what the p-value says
        p_values = np.where(np.arange(200) < count, 0.01, 1.0)
        assert flagged_share(p_values, 0.05, 39).p_value == pytest.approx((counts >= count - 0.5).mean(), abs=0.04)
    low, high = found.innocent_range
    assert np.mean((np.array(shares) >= low) & (np.array(shares) <= high)) == pytest.approx(0.9, abs=0.06)
    as_many = found.innocent_count  # the smallest number that is exceeded in at most one of 20 audits
    assert np.mean(counts <= as_many + 0.5) > 0.92 and np.mean(counts <= as_many - 0.5) < 0.97


def test_too_few_patients_for_a_share() -> None:
    with pytest.raises(ValueError, match="at least 19 held-out patients, got 3 and 18"):
        flagged_share(np.ones(3), 0.05, 18)


def test_with_nineteen_patients_all_has_a_closed_form() -> None:
    """Only what is more similar than all 19 is flagged: a rate of false alarms x has the density 19 (1 - x)^18."""
    found = flagged_share(np.array([0.05, 0.05, 0.1, 1.0]), 0.05, 19)
    assert found.innocent_range == pytest.approx((1 - 0.95 ** (1 / 19), 1 - 0.05 ** (1 / 19)))
    assert found.innocent_count == 1, "none of four is flagged with probability 19 / 23, at most one with 0.976"
    two_or_more = 1 - 0.95**4 - 4 * 0.05 * 0.95**3
    assert (found.flagged, found.p_binomial) == (2, pytest.approx(two_or_more))
