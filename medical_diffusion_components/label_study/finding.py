"""What a label study has found, in one sentence, by rules that were fixed before its runs (docs/label_study.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from medical_diffusion_components.metrics.bootstrap import Interval, bootstrap_mean

__all__ = ["Finding", "Question", "find", "finding_line", "other_comparisons"]

FEW_TOO_EASY = 0.75  # a test bed is hard enough if Dice from scratch with the fewest labels is at most this,
ALL_TOO_HARD = 0.92  # and solvable if it is at least this with all


class Question(NamedTuple):
    """Does ``arm`` help against ``baseline``?

    Args:
        arm: the arm that the question is about.
        baseline: what it is compared with.
        numbers: of labelled patients. All that there are is not few, and is left out of the answer.
        seeds: how many the protocol asks for.
        available: patients that have labels.
        worthwhile: smallest gain of Dice that counts as help.
    """

    arm: str
    baseline: str
    numbers: Sequence[int]
    seeds: int
    available: int
    worthwhile: float = 0.01

    @property
    def few(self) -> list[int]:
        """The numbers of labelled patients that the answer is about."""
        return [number for number in sorted(self.numbers) if number < self.available] or list(self.numbers)


class Finding(NamedTuple):
    """``answer`` is yes, no, harm or open; ``gain`` is None where no seed has all that the question compares."""

    answer: str
    gain: Interval | None
    seeds: int


def find(dice: Mapping[str, Mapping[int, Any]], question: Question) -> Finding:
    """The answer to a question, from the paired gain averaged over the few numbers of labels.

    Only seeds count that have every number in both arms. With all seeds of the protocol: *yes* if the interval is above 0
    and the mean is worthwhile; *harm* if the interval is below 0 and the loss as large; *no* if else the interval is
    below what is worthwhile; else *open*. With fewer seeds it is always *open*.

    Args:
        dice: as :func:`~medical_diffusion_components.label_study.dice_by_arm` gives it.
        question: what is asked.
    """
    few = question.few
    curves = [dice.get(arm, {}) for arm in (question.arm, question.baseline)]
    if any(number not in curve for number in few for curve in curves):
        return Finding("open", None, 0)
    common = set.intersection(*(set(curve[number].seeds) for number in few for curve in curves))
    if not common:
        return Finding("open", None, 0)
    seeds = sorted(common)
    gain = bootstrap_mean(np.mean([curves[0][n].of(seeds) - curves[1][n].of(seeds) for n in few], axis=0))
    if len(seeds) < question.seeds:
        return Finding("open", gain, len(seeds))
    if gain.low > 0 and gain.mean >= question.worthwhile:
        return Finding("yes", gain, len(seeds))
    if gain.high < 0 and gain.mean <= -question.worthwhile:
        return Finding("harm", gain, len(seeds))
    return Finding("no" if gain.high < question.worthwhile else "open", gain, len(seeds))


def finding_line(dice: Mapping[str, Mapping[int, Any]], question: Question) -> str:
    """The first line of the report: what was found, and whether the test bed could show it."""
    found = find(dice, question)
    labels = f"{', '.join(map(str, question.few))} labelled patients"
    who = f"`{question.arm}` against `{question.baseline}`"
    if found.gain is None:
        return f"**No conclusion yet**: no seed has run {who} at {labels} ({question.seeds} seeds planned)."
    gain = f"{found.gain.mean:+.3f} ({found.gain.low:+.3f} to {found.gain.high:+.3f}) in Dice at {labels}"
    done = f"{found.seeds} of {question.seeds} seeds"
    words = {
        "yes": f"**It helped**: {who}, {gain}, {done}.",
        "no": f"**It did not help**: {who}, {gain}, {done}; {question.worthwhile} would have counted.",
        "harm": f"**It harmed**: {who}, {gain}, {done}.",
        "open": f"**No conclusion**: {who}, {gain}, {done}.",
    }
    if found.answer == "open" and found.seeds < question.seeds:
        words["open"] = f"**{done}: no conclusion yet**. So far {who}, {gain}."
    return f"{words[found.answer]} {_test_bed_line(dice, question)}".strip()


def other_comparisons(dice: Mapping[str, Mapping[int, Any]], question: Question) -> str:
    """Every other arm against the baseline, and the arm of the question against it; empty where there is none to compare.

    They describe: they are not corrected for their number, and no answer is drawn from them.
    """
    pairs = []
    for arm in dice:
        if arm not in (question.arm, question.baseline):
            pairs += [(arm, question.baseline), (question.arm, arm)]
    found = [(pair, find(dice, question._replace(arm=pair[0], baseline=pair[1]))) for pair in pairs]
    lines = [
        f"`{arm}` against `{other}` {gain.mean:+.3f} ({gain.low:+.3f} to {gain.high:+.3f}; {seeds} seeds)"
        for (arm, other), (_, gain, seeds) in found
        if gain is not None
    ]
    labels = ", ".join(map(str, question.few))
    return f"For comparison, averaged over {labels} labelled patients: {', '.join(lines)}." if lines else ""


def _test_bed_line(dice: Mapping[str, Mapping[int, Any]], question: Question) -> str:
    """Whether labels were what was lacking: Dice from scratch with the fewest labels, and with all."""
    curve = dice[question.baseline]
    fewest, most = min(question.numbers), question.available
    if fewest not in curve or most not in curve or fewest == most:
        return ""
    low, high = (float(curve[number].dice.mean()) for number in (fewest, most))
    if low <= FEW_TOO_EASY and high >= ALL_TOO_HARD:
        return f"The test bed was hard in the right way: {low:.3f} from scratch with {fewest}, {high:.3f} with {most}."
    return (
        f"The test bed misses its aim: from scratch {low:.3f} with {fewest} labelled patients (aim: at most "
        f"{FEW_TOO_EASY}), {high:.3f} with {most} (aim: at least {ALL_TOO_HARD})."
    )
