"""Dice against the number of labelled patients: finding, table and plot of a label study, with confidence intervals."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from medical_diffusion_components.files import markdown_table, write_atomically
from medical_diffusion_components.label_study.finding import Question, finding_line, other_comparisons
from medical_diffusion_components.metrics.bootstrap import bootstrap_mean

__all__ = ["SeedDice", "dice_by_arm", "label_table", "paired", "patient_table", "plot_labels", "write_label_study"]


class SeedDice(NamedTuple):
    """Dice of the runs of one arm with one number of labels.

    Shape: ``dice`` is (seeds, test patients).
    """

    seeds: list[int]
    dice: np.ndarray

    def of(self, seeds: Sequence[int]) -> np.ndarray:
        """The rows of some seeds, in their order."""
        return self.dice[[self.seeds.index(seed) for seed in seeds]]


def paired(first: SeedDice, second: SeedDice) -> np.ndarray:
    """``first`` less ``second`` for the seeds that both have, (seeds, test patients)."""
    both = [seed for seed in first.seeds if seed in second.seeds]
    return first.of(both) - second.of(both)


def dice_by_arm(results: Sequence[Mapping[str, Any]]) -> dict[str, dict[int, SeedDice]]:
    """Results of a label study -> arm -> number of labelled patients -> Dice by seed and test patient.

    Dice is the mean over the classes that a label has, and over the cases of a patient. A case whose label is background
    alone has none and counts in no mean; a patient of such cases alone is left out. The study may be unfinished.

    Raises:
        ValueError: runs that were tested on different cases.
    """
    patients = results[0]["evaluation"]["patients"]
    dice: dict[str, dict[int, dict[int, list[float]]]] = {}
    for result in sorted(results, key=lambda result: (result["num_labelled"], result["seed"])):
        evaluation = result["evaluation"]
        if evaluation["patients"] != patients:
            raise ValueError(
                f"{result['arm']}, seed {result['seed']}: expected the test cases {sorted(patients)}, got "
                f"{sorted(evaluation['patients'])}"
            )
        of_patient: dict[str, list[float]] = {patient: [] for patient in sorted(set(patients.values()))}
        for case, patient in patients.items():
            if found := list(evaluation["cases"][case]["dice"].values()):
                of_patient[patient].append(np.mean(found))
        row = [float(np.mean(values)) for values in of_patient.values() if values]
        dice.setdefault(result["arm"], {}).setdefault(result["num_labelled"], {})[result["seed"]] = row
    return {
        arm: {number: SeedDice(list(rows), np.array(list(rows.values()))) for number, rows in curve.items()}
        for arm, curve in dice.items()
    }


def patient_table(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row per run and test patient, from which all other numbers follow: ``dice``, and that of each class.

    Both are means over the patient's cases; ``dice`` is that of the means over classes. Patients are numbered in the order
    of their ids, so that the table can be given to others.
    """
    rows = []
    for result in sorted(results, key=lambda result: (result["num_labelled"], result["arm"], result["seed"])):
        patients = result["evaluation"]["patients"]
        for number, patient in enumerate(sorted(set(patients.values())), start=1):
            own = [result["evaluation"]["cases"][case]["dice"] for case in patients if patients[case] == patient]
            cases = [dice for dice in own if dice]
            if not cases:  # their labels are background alone
                continue
            run = {"labelled": result["num_labelled"], "arm": result["arm"], "seed": result["seed"], "patient": number}
            run["dice"] = float(np.mean([np.mean(list(case.values())) for case in cases]))
            classes = dict.fromkeys(name for case in cases for name in case)
            rows.append(
                run | {name: float(np.mean([case[name] for case in cases if name in case])) for name in classes}
            )
    return rows


def label_table(dice: Mapping[str, Mapping[int, SeedDice]], baseline: str) -> list[dict[str, Any]]:
    """A row per number of labelled patients and arm: seeds, mean Dice, its interval, and the gain over ``baseline``.

    The gain is paired: the same seeds and the same patients. Where the baseline has none of the seeds yet it is None.
    """
    rows: list[dict[str, Any]] = []
    for number in sorted({number for curve in dice.values() for number in curve}):
        for arm, curve in dice.items():
            if number not in curve:
                continue
            mean = bootstrap_mean(curve[number].dice)
            row = {"labelled": number, "arm": arm, "seeds": len(curve[number].seeds)}
            row |= {"dice": mean.mean, "low": mean.low, "high": mean.high}
            other = dice.get(baseline, {}).get(number)
            gains = paired(curve[number], other) if other is not None else np.empty((0, 0))
            gain = bootstrap_mean(gains) if gains.size else (None, None, None)
            rows.append({**row, **dict(zip(("gain", "gain_low", "gain_high"), gain))})
    return rows


def costs_by_arm(results: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean processor seconds of a run of each arm: ``pretraining``, which several runs may share, and ``finetuning``."""
    costs: dict[str, list[tuple[float, float]]] = {}
    for result in results:
        if "processor_seconds" in result:
            before = result["pretraining"]["processor_seconds"]
            costs.setdefault(result["arm"], []).append((before, result["processor_seconds"]))
    return {
        arm: dict(zip(("pretraining", "finetuning"), (float(v) for v in np.mean(pairs, axis=0))))
        for arm, pairs in costs.items()
    }


def plot_labels(rows: Sequence[Mapping[str, Any]], title: str = "") -> Figure:
    """Dice over the number of labelled patients, a line per arm with its interval as a band."""
    figure = Figure(figsize=(6.4, 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for arm in dict.fromkeys(row["arm"] for row in rows):
        curve = [row for row in rows if row["arm"] == arm]
        numbers = [row["labelled"] for row in curve]
        (line,) = axes.plot(numbers, [row["dice"] for row in curve], marker="o", label=arm)
        band = [row["low"] for row in curve], [row["high"] for row in curve]
        axes.fill_between(numbers, *band, color=line.get_color(), alpha=0.15, linewidth=0)
    ticks = sorted({row["labelled"] for row in rows})
    axes.set_xscale("log")
    axes.set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
    axes.minorticks_off()
    axes.set_xlabel("labelled patients")
    axes.set_ylabel("Dice on the test split (mean, 95 % interval)")
    axes.grid(alpha=0.3)
    axes.legend(title="weights at the start")
    if title:
        axes.set_title(title, fontsize=10)
    return figure


def write_label_study(
    results: Sequence[Mapping[str, Any]],
    folder: str | Path,
    baseline: str,
    facts: Mapping[str, Any],
    question: Question | None = None,
) -> None:
    """Write ``label_study.csv``, ``.md``, ``.png`` and ``label_study_patients.csv`` into ``folder``, and print the table.

    Args:
        results: as ``LabelStudy.run`` returns them; the study may be unfinished.
        folder: where to.
        baseline: the arm that gains are measured against.
        facts: what the line below the table says, such as the data.
        question: what the first line of the report answers; None: there is no such line.
    """
    folder = Path(folder)
    dice = dice_by_arm(results)
    rows = label_table(dice, baseline)
    seeds = sorted({result["seed"] for result in results})
    patients = next(found.dice.shape[1] for curve in dice.values() for found in curve.values())
    text = [] if question is None else [finding_line(dice, question), ""]
    text += _markdown_table(rows, baseline)
    if question is not None and (others := other_comparisons(dice, question)):
        text += ["", others]
    text += ["", *_markdown_costs(costs_by_arm(results), _killed(results))]
    foot = {**facts, "seeds": len(seeds), "test patients": patients}
    markdown = "\n".join([*text, "; ".join(f"{key}: {value}" for key, value in foot.items()), ""])
    title = f"{patients} test patients, {len(seeds)} seed{'s' if len(seeds) > 1 else ''}"
    for name, table in (("label_study", rows), ("label_study_patients", patient_table(results))):
        write_atomically(folder / f"{name}.csv", partial(Path.write_text, data=_csv(table)))
    write_atomically(folder / "label_study.md", lambda temporary: temporary.write_text(markdown))
    write_atomically(folder / "label_study.png", lambda temporary: plot_labels(rows, title).savefig(temporary))
    print(f"{markdown}\nplot: {folder / 'label_study.png'}", flush=True)


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    return text.getvalue()


def _markdown_table(rows: Sequence[Mapping[str, Any]], baseline: str) -> list[str]:
    cells = []
    for row in rows:
        value = f"{row['dice']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
        gain = ""
        if row["arm"] != baseline and row["gain"] is not None:
            gain = f"{row['gain']:+.3f} ({row['gain_low']:+.3f} to {row['gain_high']:+.3f})"
        cells.append((str(row["labelled"]), row["arm"], str(row["seeds"]), value, gain))
    gained = f"gain over {baseline} (paired, 95 % interval)"
    return markdown_table(("labelled patients", "arm", "seeds", "Dice (95 % interval)", gained), cells)


def _killed(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """The arms of which an attempt was killed, so that nobody knows what it cost."""
    costs = [(result["arm"], part) for result in results for part in (result, result.get("pretraining", {}))]
    return list(dict.fromkeys(arm for arm, part in costs if part.get("killed_attempts")))


def _markdown_costs(costs: Mapping[str, Mapping[str, float]], killed: Sequence[str]) -> list[str]:
    """A table of processor times, or nothing where none was measured; with an empty line after it."""
    if not costs:
        return []
    header = ("arm", "processor time of a pre-training, s", "of a fine-tuning, s", "together, s")
    seconds = {arm: (cost["pretraining"], cost["finetuning"]) for arm, cost in costs.items()}
    rows = [(arm, *(f"{s:.0f}" for s in (*both, sum(both)))) for arm, both in seconds.items()]
    lower = f"Attempts were killed, and their time is not in the table: {', '.join(killed)} took longer than it says."
    return [*markdown_table(header, rows), *(["", lower] if killed else []), ""]
