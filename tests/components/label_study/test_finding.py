"""The answer of a label study follows from its numbers by the rules of docs/label_study.md."""

from __future__ import annotations

import numpy as np
import pytest

from medical_diffusion_components.label_study.finding import Question, find, finding_line, other_comparisons
from medical_diffusion_components.label_study.label_efficiency import SeedDice

NUMBERS = [2, 4, 40]
QUESTION = Question("synthetic", "scratch", NUMBERS, seeds=5, available=max(NUMBERS))


def study(
    gains: dict[int, float], spread: float = 0.002, seeds: int = 5, level: float = 0.7, patients: int = 8
) -> dict:
    """Two arms whose difference at each number of labels is ``gains`` on average and varies by seed and patient."""
    rng = np.random.default_rng(0)
    dice: dict = {"scratch": {}, "synthetic": {}}
    for number, gain in gains.items():
        base = level + 0.05 * rng.standard_normal((seeds, patients))
        more = spread * rng.standard_normal((seeds, patients))
        dice["scratch"][number] = SeedDice(list(range(seeds)), base)
        dice["synthetic"][number] = SeedDice(list(range(seeds)), base + gain + more - more.mean())
    return dice


@pytest.mark.parametrize(
    ("gain", "spread", "answer"),
    [
        (0.03, 0.002, "yes"),
        (0.005, 0.002, "no"),  # surely more than nothing, and surely not worth a generator
        (-0.001, 0.002, "no"),
        (-0.03, 0.002, "harm"),
        (0.02, 0.2, "open"),
        (0.005, 0.2, "open"),  # too little on average, but not surely
        (-0.02, 0.2, "open"),
    ],
)
def test_the_interval_decides(gain: float, spread: float, answer: str) -> None:
    dice = study(dict.fromkeys(NUMBERS, gain), spread)
    found = find(dice, QUESTION)
    assert (found.answer, found.seeds) == (answer, 5)
    assert found.gain is not None and found.gain.mean == pytest.approx(gain)
    low, high = found.gain.low, found.gain.high
    said = {"yes": "It helped", "no": "It did not help", "harm": "It harmed", "open": "No conclusion"}[answer]
    assert low < high and finding_line(dice, QUESTION).startswith(
        f"**{said}**: `synthetic` against `scratch`, {gain:+.3f} ({low:+.3f} to {high:+.3f}) in Dice at 2, 4 labelled"
    )


def test_only_few_labels_count() -> None:
    """The gain is the mean over all numbers but that of all patients, whichever were run."""
    dice = study({2: 0.02, 4: 0.04, 40: -0.5})
    for numbers, available, mean in (
        (NUMBERS, 40, 0.03), ([2, 4], 40, 0.03), ([4], 40, 0.04), ([40], 40, -0.5), (NUMBERS, 98, -0.44 / 3),
    ):  # fmt: skip
        found = find(dice, QUESTION._replace(numbers=numbers, available=available))
        assert found.gain is not None and found.gain.mean == pytest.approx(mean)
    line = finding_line(dice, QUESTION._replace(available=98))
    assert "at 2, 4, 40 labelled patients" in line and "test bed" not in line, "of which all is half"


def test_fewer_seeds_than_planned_are_no_conclusion_however_clear() -> None:
    dice = study(dict.fromkeys(NUMBERS, 0.2), seeds=4)
    assert find(dice, QUESTION).answer == "open"
    assert finding_line(dice, QUESTION).startswith("**4 of 5 seeds: no conclusion yet**. So far `synthetic` against")


def test_a_seed_counts_once_both_arms_have_every_few_number() -> None:
    dice = study(dict.fromkeys(NUMBERS, 0.02))
    dice["synthetic"][4] = SeedDice([0, 2], dice["synthetic"][4].dice[[0, 2]])
    assert find(dice, QUESTION).seeds == 2
    del dice["synthetic"][2]
    assert find(dice, QUESTION) == ("open", None, 0)
    assert finding_line(dice, QUESTION).startswith("**No conclusion yet**: no seed has run")


@pytest.mark.parametrize(
    ("few", "many", "said"),
    [(0.7, 0.95, "hard in the right way: 0.700"), (0.8, 0.95, "misses its aim"), (0.7, 0.9, "misses its aim")],
)
def test_the_first_line_says_whether_labels_were_what_was_lacking(few: float, many: float, said: str) -> None:
    dice = study(dict.fromkeys(NUMBERS, 0.0))
    for number, level in zip(NUMBERS, (few, 0.8, many)):
        dice["scratch"][number] = SeedDice(list(range(5)), np.full((5, 8), level))
    assert said in finding_line(dice, QUESTION)


def test_other_arms_are_compared_with_both_sides_of_the_question() -> None:
    dice = study(dict.fromkeys(NUMBERS, -0.02))
    assert other_comparisons(dice, QUESTION) == "", "there are no others"
    shifted = {n: found._replace(dice=found.dice + 0.05) for n, found in dice["scratch"].items()}
    line = other_comparisons({**dice, "real": shifted, "pairs": {2: shifted[2]}}, QUESTION)
    assert line.startswith(
        "For comparison, averaged over 2, 4 labelled patients: `real` against `scratch` +0.050 (+0.050 to"
    )
    assert "`synthetic` against `real` -0.070" in line and line.endswith("; 5 seeds).")
    assert "pairs" not in line, "which has not run all numbers"
