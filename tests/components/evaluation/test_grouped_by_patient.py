"""Volumes of one patient are no independent volumes: halves, errors and p-values go by patients."""

from __future__ import annotations

import numpy as np
import pytest

from medical_diffusion_components.evaluation import AnatomySpace, Comparison, VolumeSet

PATIENTS, SCANS = 20, 3


def scans(seed: int, grouped: bool = True) -> VolumeSet:
    """Each patient's volumes are the same but for a trace of noise."""
    rng = np.random.default_rng(seed)

    def repeated(columns: int) -> np.ndarray:
        once = rng.normal(size=(PATIENTS, columns))
        return np.repeat(once, SCANS, axis=0) + 1e-6 * rng.normal(size=(PATIENTS * SCANS, columns))

    features = {"anatomy": repeated(4), "quantiles": repeated(3), "radial": np.exp(repeated(8))}
    features |= {f"{name}_{axis}": repeated(2) for name in ("continuity", "power") for axis in range(3)}
    patients = np.repeat(np.arange(PATIENTS), SCANS)
    return VolumeSet("scans", patients if grouped else np.arange(len(patients)), features, {})


def between(grouped: bool) -> dict:
    reference, training = scans(0, grouped), scans(1)
    comparison = Comparison(reference, training, {"anatomy": AnatomySpace(side=2)}, permutations=199)
    return comparison.between(scans(2, grouped))


def test_no_patient_is_in_both_halves_of_the_floor() -> None:
    comparison = Comparison(scans(0), scans(1), {"anatomy": AnatomySpace(side=2)}, permutations=1)
    for one, other in comparison.halves:
        assert len(one) == len(other) == PATIENTS * SCANS // 2
        assert not set(comparison.reference.groups[one]) & set(comparison.reference.groups[other])


@pytest.mark.parametrize(("space", "measure"), [("anatomy", "mmd"), ("anatomy", "kid"), ("volumes", "high_frequency")])
def test_three_scans_of_a_patient_do_not_make_the_error_smaller(space: str, measure: str) -> None:
    right, wrong = (between(grouped)[space][measure] for grouped in (True, False))
    assert right["value"] == wrong["value"]
    assert right["se"] > 1.3 * wrong["se"]
    assert right["floor"] != wrong["floor"]


def test_a_patient_with_most_of_the_scans_leaves_measures_that_need_no_neighbours() -> None:
    """Of 18 volumes 11 are one patient's, so that a half may hold four: too few for neighbourhoods of five."""
    few = scans(0)
    rows = {name: array[:18] for name, array in few.features.items()}
    reference = VolumeSet("scans", np.array([0] * 11 + list(range(1, 8))), rows, {})
    found = Comparison(reference, scans(1), {"anatomy": AnatomySpace(side=2)}, permutations=9).between(scans(2))
    assert "precision" not in found["anatomy"] and np.isfinite(found["anatomy"]["kid"]["floor_sd"])
    apart = VolumeSet("scans", np.arange(18), rows, {})
    found = Comparison(apart, scans(1), {"anatomy": AnatomySpace(side=2)}, permutations=9).between(scans(2))
    assert np.isfinite(found["anatomy"]["precision"]["floor_sd"])


def test_halves_without_a_compared_pair_do_not_void_the_floor() -> None:
    """Each of six volumes is compared with the next: a half of every other one has no pair, and counts for nothing."""
    similar = np.full((6, 6), np.nan)
    for one in range(6):
        similar[one, (one + 1) % 6] = similar[(one + 1) % 6, one] = 0.5 + 0.01 * one
    rows = {name: array[:6] for name, array in scans(0).features.items()}
    reference = VolumeSet("scans", np.arange(6), rows, {"ms_ssim_published": similar})
    comparison = Comparison(reference, scans(1), {}, permutations=9)
    means = [np.nanmean(part) for one, _ in comparison.halves if np.isfinite(part := similar[np.ix_(one, one)]).any()]
    assert len(means) < len(comparison.halves), "no half of every other volume was drawn: this tries nothing"
    cell = comparison.between(reference)["volumes"]["ms_ssim_published"]
    assert cell["floor"] == pytest.approx(np.mean(means)) and cell["floor_sd"] == pytest.approx(np.std(means, ddof=1))
    assert comparison.paired(reference)["volumes"]["ms_ssim_published"]["value"] == pytest.approx(np.mean(means))


def test_two_volumes_have_no_errors_and_are_refused() -> None:
    comparison = Comparison(scans(0), scans(1), {"anatomy": AnatomySpace(side=2)}, permutations=1)
    two = scans(2)
    two = VolumeSet(
        "synthetic", np.arange(2), {name: rows[:2] for name, rows in two.features.items()}, two.similarities
    )
    with pytest.raises(ValueError, match="at least 3 volumes of different patients for its errors, got 2 synthetic"):
        comparison.between(two)


def test_the_p_value_permutes_patients() -> None:
    right, wrong = (between(grouped)["anatomy"]["mmd"]["p"] for grouped in (True, False))
    assert wrong < 0.05 < right, "both sets are of one distribution; counted as 60 volumes they seem to differ"
