from __future__ import annotations

import numpy as np
import pytest
from prdc import compute_prdc

from medical_diffusion_components.metrics import NeighbourMeasures, expected_coverage, neighbour_measures
from medical_diffusion_components.metrics.neighbours import distances


def sets(n: int, m: int, shift: float = 0.0, features: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, features)) + shift, rng.normal(size=(m, features))


@pytest.mark.parametrize("shift", [0.0, 0.7, 5.0])
def test_four_of_them_equal_an_independent_implementation(shift: float) -> None:
    synthetic, real = sets(40, 30, shift)
    found = neighbour_measures(synthetic, real, k=3)._asdict()
    for name, value in compute_prdc(real, synthetic, nearest_k=3).items():
        assert found[name] == pytest.approx(value, abs=1e-9), name


def test_a_set_covers_itself_although_all_distances_tie() -> None:
    real = sets(12, 12)[1]
    found = neighbour_measures(real, real)
    assert (found.precision, found.recall, found.coverage) == (1, 1, 1)


def test_copies_of_one_volume_are_precise_and_cover_little() -> None:
    _, real = sets(1, 60)
    centre = np.repeat(real[np.argmin(np.linalg.norm(real, axis=1))][None], 60, axis=0)
    found = neighbour_measures(centre, real)
    assert found.precision == 1 and found.recall < 0.1
    assert found.clipped_coverage < 0.3 and found.density > found.clipped_density


def test_far_away_nothing_is_near() -> None:
    assert neighbour_measures(*sets(30, 30, shift=50)) == NeighbourMeasures(0, 0, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("n", "m", "k", "expected"), [(24, 24, 3, 0.891), (100, 100, 5, 0.971), (24, 45, 5, 0.896), (100, 1000, 5, 0.380)]
)
def test_the_expected_coverage_is_that_of_the_closed_form(n: int, m: int, k: int, expected: float) -> None:
    assert expected_coverage(n, m, k) == pytest.approx(expected, abs=5e-4)


def test_the_expected_coverage_is_what_fresh_sets_have_on_average() -> None:
    found = np.mean([neighbour_measures(*sets(24, 45, seed=seed)).coverage for seed in range(60)])
    assert found == pytest.approx(expected_coverage(24, 45), abs=0.02)


@pytest.mark.parametrize("good", [0.25, 0.5, 0.75, 1.0])
def test_clipped_measures_read_the_share_of_good_volumes(good: float) -> None:
    """Noise far away takes the place of the others."""
    values = []
    for seed in range(20):
        synthetic, real = sets(60, 60, seed=seed)
        synthetic[round(60 * good) :] += 100
        found = neighbour_measures(synthetic, real)
        values.append([found.clipped_density, found.clipped_coverage])
    assert np.mean(values, axis=0) == pytest.approx([good, good], abs=0.08)


def test_an_outlier_among_the_real_ones_lends_no_density_that_is_clipped() -> None:
    """Bad volumes within the wide neighbourhood of one odd scan count for the density, and not for the clipped one."""
    _, real = sets(1, 40)
    real[0] = 60.0
    synthetic = 30.0 + sets(40, 1)[0]
    found = neighbour_measures(synthetic, real)
    assert found.precision == 1 and found.density == pytest.approx(0.2)  # each is in one neighbourhood of five
    assert found.clipped_density == 0


def test_the_distance_of_a_volume_to_itself_is_zero_whatever_rounding_says() -> None:
    far = 1e6 + sets(30, 1)[0]
    assert (np.diagonal(distances(far, far)) == 0).all()


def test_sets_that_are_too_small_are_refused() -> None:
    with pytest.raises(ValueError, match="5 neighbours need sets of more than 6, got 6 and 30"):
        neighbour_measures(*sets(6, 30))
