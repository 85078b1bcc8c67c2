from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import norm

from medical_diffusion_components.metrics.label_efficiency import (
    bootstrap_mean,
    dice_by_arm,
    label_table,
    write_label_study,
)


def results(gain: float = 0.1) -> list[dict]:
    """Two arms, two numbers, three seeds, five cases of two classes; the second arm is better by ``gain`` everywhere."""
    rng = np.random.default_rng(0)
    made = []
    for number in (1, 4):
        for seed in range(3):
            base = {f"case_{i}": 0.5 + 0.1 * number + 0.1 * rng.random() for i in range(5)}
            for arm, more in (("scratch", 0.0), ("synthetic", gain)):
                cases = {case: {"dice": {"a": v + more - 0.2, "b": v + more + 0.2}} for case, v in base.items()}
                made.append({"arm": arm, "num_labelled": number, "seed": seed, "evaluation": {"cases": cases}})
    return made[::-1]


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


def test_values_without_two_dimensions_are_refused() -> None:
    for values in (np.zeros(3), np.zeros((0, 3))):
        with pytest.raises(ValueError, match=r"expected values \(seeds, cases\)"):
            bootstrap_mean(values)


def test_dice_is_the_mean_over_classes_in_the_order_of_seeds_and_cases() -> None:
    made = results()
    dice = dice_by_arm(made)
    assert list(dice["synthetic"]) == [1, 4] and dice["synthetic"][4].shape == (3, 5)
    one = next(r for r in made if (r["arm"], r["num_labelled"], r["seed"]) == ("scratch", 4, 2))
    assert dice["scratch"][4][2, 3] == pytest.approx(
        np.mean(list(one["evaluation"]["cases"]["case_3"]["dice"].values()))
    )


def test_runs_on_other_cases_are_refused() -> None:
    made = results()
    made[0]["evaluation"]["cases"].pop("case_1")
    with pytest.raises(ValueError, match="expected the test cases"):
        dice_by_arm(made)


def test_gain_is_paired() -> None:
    """Seeds and cases differ much more than the arms do; their difference is still known exactly."""
    rows = label_table(dice_by_arm(results(0.1)), "scratch")
    for row in rows:
        expected = 0.1 if row["arm"] == "synthetic" else 0.0
        assert (row["gain"], row["gain_low"], row["gain_high"]) == pytest.approx((expected,) * 3)
        assert row["low"] < row["dice"] < row["high"]


def test_table_and_plot_are_written(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_label_study(results(), tmp_path, "scratch", {"data": "invented"})
    with open(tmp_path / "label_study.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(row["labelled"], row["arm"]) for row in rows] == [
        (number, arm) for number in "14" for arm in ("synthetic", "scratch")
    ]
    text = (tmp_path / "label_study.md").read_text()
    assert "| 4 | synthetic | " in text and "+0.100 (+0.100 to +0.100)" in text and "seeds: 3; test cases: 5" in text
    assert text in capsys.readouterr().out
    assert np.asarray(Image.open(tmp_path / "label_study.png").convert("L")).std() > 5
