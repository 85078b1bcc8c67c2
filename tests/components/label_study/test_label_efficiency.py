from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medical_diffusion_components.label_study.label_efficiency import dice_by_arm, label_table, write_label_study


def results(gain: float = 0.1) -> list[dict]:
    """Two arms, two numbers, three seeds, five cases of two classes; the second arm is better by ``gain`` everywhere."""
    rng = np.random.default_rng(0)
    made = []
    for number in (1, 4):
        for seed in range(3):
            base = {f"case_{i}": 0.5 + 0.1 * number + 0.1 * rng.random() for i in range(5)}
            for arm, more in (("scratch", 0.0), ("synthetic", gain)):
                cases = {case: {"dice": {"a": v + more - 0.2, "b": v + more + 0.2}} for case, v in base.items()}
                evaluation = {"cases": cases, "patients": {case: f"patient {case}" for case in cases}}
                made.append({"arm": arm, "num_labelled": number, "seed": seed, "evaluation": evaluation})
    return made[::-1]


def test_dice_is_the_mean_over_classes_in_the_order_of_seeds_and_cases() -> None:
    made = results()
    dice = dice_by_arm(made)
    assert list(dice["synthetic"]) == [1, 4] and dice["synthetic"][4].shape == (3, 5)
    one = next(r for r in made if (r["arm"], r["num_labelled"], r["seed"]) == ("scratch", 4, 2))
    assert dice["scratch"][4][2, 3] == pytest.approx(
        np.mean(list(one["evaluation"]["cases"]["case_3"]["dice"].values()))
    )


def test_two_cases_of_a_patient_count_as_one() -> None:
    made = results()
    for result in made:
        result["evaluation"]["patients"] |= {"case_3": "both", "case_4": "both"}
    apart, together = dice_by_arm(results())["scratch"][1], dice_by_arm(made)["scratch"][1]
    assert together.shape == (3, 4)
    np.testing.assert_allclose(np.sort(together), np.sort(np.c_[apart[:, :3], apart[:, 3:].mean(1)]))


def test_runs_on_other_cases_are_refused() -> None:
    made = results()
    made[0]["evaluation"]["patients"].pop("case_1")
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
    assert "| 4 | synthetic | " in text and "+0.100 (+0.100 to +0.100)" in text and "seeds: 3; test patients: 5" in text
    assert text in capsys.readouterr().out
    assert np.asarray(Image.open(tmp_path / "label_study.png").convert("L")).std() > 5
