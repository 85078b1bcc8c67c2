"""Measures of a whole set of synthetic volumes, and the null of the published rule."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import mannwhitneyu, norm

from medical_diffusion_components.audit import data_copying_z, holdout_share, published_rule


def unit(rng: np.random.Generator, count: int, features: int = 32) -> np.ndarray:
    points = rng.normal(size=(count, features))
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def test_share_nearer_to_training_is_a_half_without_copies_and_one_with_copies_alone() -> None:
    rng = np.random.default_rng(0)
    synthetic, training, held_out = unit(rng, 300), unit(rng, 80), unit(rng, 50)
    found = holdout_share(synthetic @ training.T, synthetic @ held_out.T)
    assert found.share == pytest.approx(0.5, abs=0.05)
    assert (found.size, found.redraws) == (50, 100)
    copied = holdout_share(training[:50] @ training[:50].T, training[:50] @ held_out.T)
    assert copied.share == 1


def test_unlike_sizes_of_the_two_sets_do_not_matter() -> None:
    rng = np.random.default_rng(1)
    synthetic, training, held_out = unit(rng, 400), unit(rng, 400), unit(rng, 20)
    assert holdout_share(synthetic @ training.T, synthetic @ held_out.T).share == pytest.approx(0.5, abs=0.06)


def test_ties_count_half() -> None:
    assert holdout_share(np.zeros((4, 3)), np.zeros((4, 3)), redraws=2).share == 0.5


def test_z_of_data_copying_is_standard_normal_without_copies_and_far_below_with_them() -> None:
    rng = np.random.default_rng(2)
    null = [data_copying_z(rng.normal(size=30), rng.normal(size=40)) for _ in range(500)]
    assert np.mean(null) == pytest.approx(0, abs=0.15) and np.std(null) == pytest.approx(1, abs=0.12)
    assert np.mean(np.array(null) < norm.ppf(0.05)) == pytest.approx(0.05, abs=0.03)
    assert data_copying_z(rng.normal(2, 1, 30), rng.normal(size=40)) < -4  # more similar to training: smaller distances


def test_z_of_data_copying_is_that_of_scipys_test() -> None:
    rng = np.random.default_rng(4)
    synthetic, held_out = rng.normal(0.5, 1, 5), rng.normal(size=4)
    expected = mannwhitneyu(-synthetic, -held_out, method="asymptotic", use_continuity=False).pvalue
    assert 2 * norm.sf(abs(data_copying_z(synthetic, held_out))) == pytest.approx(expected, rel=1e-12)


def test_the_published_rule_calls_innocent_volumes_copies_as_often_as_its_null_says() -> None:
    """904 training and 226 validation volumes, independent, nothing copied: 18.5 %, not 5 %."""
    rng = np.random.default_rng(3)
    found = []
    for repeat in range(3):
        training, held_out, synthetic = unit(rng, 904), unit(rng, 452), unit(rng, 904)
        similarities = held_out @ training.T
        found.append(published_rule(synthetic @ training.T, similarities, similarities, seed=repeat))
    assert found[0].expected == pytest.approx(0.1855, abs=1e-3)
    for name in ("memorised", "copies", "held_out"):
        assert np.mean([getattr(rule, name) for rule in found]) == pytest.approx(0.185, abs=0.05)


def test_the_published_rule_by_hand() -> None:
    """Both synthetic volumes copy the first of three training volumes; the null is tried on the other held-out half."""
    synthetic = np.array([[0.9, 0.0, 0.0], [0.9, 0.1, 0.1]])
    values = np.array([0.1, 0.2, 0.3, 0.4])
    raw, through = (np.repeat(some[:, None], 3, axis=1) for some in (values, values + 0.01))
    thresholds = set()
    for seed in range(20):
        found = published_rule(synthetic, raw, through, seed=seed)
        assert (found.copies, found.memorised) == (1.0, pytest.approx(1 / 3))
        assert found.held_out == (values > found.threshold).sum() / 2, "nobody of the half that gave the threshold"
        thresholds.add(found.threshold)
    assert sorted(thresholds) == pytest.approx([0.2, 0.3, 0.4]), "of volumes as they are, not through the first stage"
