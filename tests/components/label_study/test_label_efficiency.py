from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medical_diffusion_components.label_study.finding import Question
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
    assert list(dice["synthetic"]) == [1, 4] and dice["synthetic"][4].dice.shape == (3, 5)
    assert dice["synthetic"][4].seeds == [0, 1, 2]
    one = next(r for r in made if (r["arm"], r["num_labelled"], r["seed"]) == ("scratch", 4, 2))
    assert dice["scratch"][4].dice[2, 3] == pytest.approx(
        np.mean(list(one["evaluation"]["cases"]["case_3"]["dice"].values()))
    )


def test_two_cases_of_a_patient_count_as_one() -> None:
    made = results()
    for result in made:
        result["evaluation"]["patients"] |= {"case_3": "both", "case_4": "both"}
    apart, together = (dice_by_arm(some)["scratch"][1].dice for some in (results(), made))
    assert together.shape == (3, 4)
    np.testing.assert_allclose(np.sort(together), np.sort(np.c_[apart[:, :3], apart[:, 3:].mean(1)]))


def test_a_label_of_background_alone_counts_in_no_mean(tmp_path: Path) -> None:
    made = results()
    for result in made:
        result["evaluation"]["patients"] |= {"case_3": "both", "case_4": "both"}
        for case in ("case_0", "case_4"):  # all that a patient has, and one of two
            result["evaluation"]["cases"][case]["dice"] = {}
    whole, some = (dice_by_arm(one)["scratch"][1].dice for one in (results(), made))
    np.testing.assert_array_equal(some, whole[:, [3, 1, 2]])  # the other case of "both", then the last two patients
    write_label_study(made, tmp_path, "scratch", {})
    rows = list(csv.DictReader((tmp_path / "label_study_patients.csv").read_text().splitlines()))
    assert {row["patient"] for row in rows} == {"1", "3", "4"} and all(row["dice"] for row in rows)
    assert "test patients: 3" in (tmp_path / "label_study.md").read_text()


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


def test_all_numbers_follow_from_the_table_of_patients_which_names_nobody(tmp_path: Path) -> None:
    made = results()
    for result in made:
        result["evaluation"]["patients"] |= {"case_3": "both", "case_4": "both"}
    del made[0]["evaluation"]["cases"]["case_3"]["dice"]["b"]  # a case without this class
    write_label_study(made, tmp_path, "scratch", {})
    text = (tmp_path / "label_study_patients.csv").read_text()
    rows = list(csv.DictReader(text.splitlines()))
    assert list(rows[0]) == ["labelled", "arm", "seed", "patient", "dice", "a", "b"] and len(rows) == 12 * 4
    assert "case" not in text and "both" not in text
    for arm, curve in dice_by_arm(made).items():
        for number, runs in curve.items():
            of_run = [row for row in rows if (row["arm"], row["labelled"]) == (arm, str(number))]
            assert [row["seed"] for row in of_run] == [str(seed) for seed in runs.seeds for _ in range(4)]
            np.testing.assert_allclose([float(row["dice"]) for row in of_run], runs.dice.ravel(), atol=1e-5)
    whole = [row for row in rows if row["patient"] in "234"]
    np.testing.assert_allclose(*([float(r[k]) + d for r in whole] for k, d in (("a", 0.4), ("b", 0.0))), atol=3e-5)


def test_table_and_plot_are_written(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_label_study(results(), tmp_path, "scratch", {"data": "invented"})
    with open(tmp_path / "label_study.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(row["labelled"], row["arm"]) for row in rows] == [
        (number, arm) for number in "14" for arm in ("synthetic", "scratch")
    ]
    text = (tmp_path / "label_study.md").read_text()
    assert (
        "| 4 | synthetic | " in text
        and "+0.100 (+0.100 to +0.100)" in text
        and "seeds: 3; test patients: 5" in text
        and text.startswith("| labelled")
    )
    assert text in capsys.readouterr().out
    assert np.asarray(Image.open(tmp_path / "label_study.png").convert("L")).std() > 5


def test_an_unfinished_study_is_paired_by_the_seeds_that_both_arms_have() -> None:
    """Seed 0 of the arm and seed 2 of the baseline are missing: a pairing by position would compare seeds 1 and 0."""
    missing = {("synthetic", 4, 0), ("scratch", 4, 2)}
    made = [r for r in results(0.1) if (r["arm"], r["num_labelled"], r["seed"]) not in missing]
    row = next(r for r in label_table(dice_by_arm(made), "scratch") if (r["arm"], r["labelled"]) == ("synthetic", 4))
    assert (row["seeds"], row["gain"], row["gain_high"]) == (2, pytest.approx(0.1), pytest.approx(0.1))


def test_an_arm_is_in_the_table_before_its_baseline_has_run() -> None:
    made = [r for r in results() if r["arm"] == "synthetic"]
    rows = label_table(dice_by_arm(made), "scratch")
    assert [(row["seeds"], row["gain"]) for row in rows] == [(3, None), (3, None)]


def test_the_report_begins_with_what_was_found_and_says_what_it_cost(tmp_path: Path) -> None:
    made = results(0.1)
    for result in made:
        before = {"processor_seconds": 30.0 if result["arm"] == "synthetic" else 0.0}
        result |= {"processor_seconds": 100.0 + result["seed"], "pretraining": before}
    question = Question("synthetic", "scratch", [1, 4], seeds=3, available=4)
    write_label_study(made, tmp_path, "scratch", {"data": "invented"}, question)
    text = (tmp_path / "label_study.md").read_text()
    assert text.startswith("**It helped**: `synthetic` against `scratch`, +0.100 (+0.100 to +0.100)")
    assert "| synthetic | 30 | 101 | 131 |" in text and "| scratch | 0 | 101 | 101 |" in text
    assert "killed" not in text and "For comparison" not in text
    third = [{**result, "arm": "real"} for result in made if result["arm"] == "synthetic"]
    write_label_study([*made, *third], tmp_path, "scratch", {"data": "invented"}, question)
    said = "`real` against `scratch` +0.100 (+0.100 to +0.100; 3 seeds), `synthetic` against `real` +0.000"
    assert said in (tmp_path / "label_study.md").read_text()
    for result in made:
        result["pretraining"] |= {"killed_attempts": int(result["arm"] == "synthetic")}
    write_label_study(made, tmp_path, "scratch", {"data": "invented"}, question)
    said = "Attempts were killed, and their time is not in the table: synthetic took longer than it says."
    assert said in (tmp_path / "label_study.md").read_text().splitlines()
