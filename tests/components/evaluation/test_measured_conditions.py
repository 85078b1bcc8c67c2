"""Instruments: the ridge against refits, and formulas against the true values of the embedded cohorts."""

from __future__ import annotations

import numpy as np
import pytest

from medical_diffusion_components.cohorts.phantoms import write_phantom_cohort
from medical_diffusion_components.cohorts.template import brain_conditions, template_subject
from medical_diffusion_components.data import load_cases
from medical_diffusion_components.data.conditions import Conditions
from medical_diffusion_components.evaluation import measured_conditions
from medical_diffusion_components.evaluation.measured_conditions import FORMULAS, fitted_instrument, weighted_ridge
from medical_diffusion_components.transforms import LoadVolumed, ScaleAsPreparedd

AGE = Conditions({"age": {"range": [0, 100]}}).variables[0]
SEX = Conditions({"sex": {"values": ["F", "M"]}}).variables[0]


def refitted(x: np.ndarray, y: np.ndarray, weights: np.ndarray, penalty: float, at: np.ndarray) -> np.ndarray:
    """Weighted ridge with a free intercept by its normal equations; the penalty is in units of the total weight."""
    ones = np.concatenate([np.ones((len(x), 1)), x], 1)
    penalties = np.diag([0.0] + [penalty] * x.shape[1])
    solved = np.linalg.solve(ones.T @ (weights[:, None] * ones) + penalties, ones.T @ (weights[:, None] * y))
    return np.concatenate([np.ones((len(at), 1)), at], 1) @ solved


@pytest.mark.parametrize("features", [3, 20])
def test_the_ridge_has_the_penalty_of_the_smallest_leave_one_out_error(features: int) -> None:
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(12, features)) + 3, rng.normal(size=(12, 2))
    y = x[:, :2] + 0.5 * noise
    weights = rng.uniform(0.5, 2, 12)
    share, at = weights / weights.sum(), rng.normal(size=(4, features))
    centred = np.sqrt(share)[:, None] * (x - share @ x)
    penalties = measured_conditions.PENALTIES * np.linalg.eigvalsh(centred @ centred.T).clip(min=0).mean()

    def error(penalty: float) -> float:
        kept = [np.delete(np.arange(12), out) for out in range(12)]
        return sum(
            share[out] * np.square(y[out] - refitted(x[k], y[k], share[k], penalty, x[out : out + 1])).sum()
            for out, k in enumerate(kept)
        )

    expected = refitted(x, y, share, min(penalties, key=error), at)
    np.testing.assert_allclose(weighted_ridge(x, y, weights)(at), expected, rtol=1e-6)


def test_a_rare_category_is_found_as_often_as_a_frequent_one() -> None:
    rng = np.random.default_rng(1)
    truth = (np.arange(400) % 20 == 0).astype(float)
    inputs = truth[:, None] + 0.6 * rng.normal(size=(400, 1))
    instrument = fitted_instrument(SEX, inputs, truth, "")
    new = np.repeat([0.0, 1.0], 500)
    found = instrument.read(new[:, None] + 0.6 * rng.normal(size=(1000, 1))) == new
    assert abs(found[:500].mean() - found[500:].mean()) < 0.12 and found.mean() > 0.7


@pytest.mark.parametrize(("variable", "truth", "message"), [
    (AGE, [1.0, 2.0, np.nan] * 4, "condition age: expected at least 10 training volumes with a value, got 8"),
    (AGE, [7.0] * 12, "condition age: all training volumes have the value 7"),
    (SEX, [0.0] * 12, "condition sex: no training volume is M"),
])  # fmt: skip
def test_what_cannot_be_measured_is_refused_by_name(variable, truth: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fitted_instrument(variable, np.arange(12.0)[:, None], np.array(truth), "")


def test_missing_values_have_no_part_in_the_fit() -> None:
    x = np.arange(14.0)[:, None]
    truth = np.where(np.arange(14) % 7 == 3, np.nan, 2 * x[:, 0] + 5)
    instrument = fitted_instrument(AGE, x, truth, "")
    assert instrument.training_volumes == 12
    np.testing.assert_allclose(instrument.read(np.array([[3.0], [20.0]])), [11, 45], rtol=1e-3)


def test_the_brain_share_is_read_from_the_image() -> None:
    subjects = [template_subject(index, (32, 32, 32)) for index in range(12)]
    truth = [brain_conditions(subject.label)["brain_share"] for subject in subjects]
    measured = [FORMULAS["brain_share"](subject.image) for subject in subjects]
    assert np.corrcoef(truth, measured)[0, 1] ** 2 > 0.99


def test_the_glandular_fraction_is_read_from_the_image(tmp_path) -> None:
    folder = write_phantom_cohort(tmp_path / "cohort", "breast", 14, (32, 32, 8))
    cases = load_cases(folder, "training")
    load = LoadVolumed(keys="image", axcodes="RAS")
    scale = ScaleAsPreparedd(keys="image", minv=-1.0, maxv=1.0)
    measured = [FORMULAS["glandular_fraction"](np.asarray(scale(load(dict(case)))["image"][0])) for case in cases]
    truth = [case["conditions"]["glandular_fraction"] for case in cases]
    assert np.corrcoef(truth, measured)[0, 1] ** 2 > 0.7
