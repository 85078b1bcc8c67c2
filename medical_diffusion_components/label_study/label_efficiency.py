"""Dice against the number of labelled patients: table and plot of a label study, with confidence intervals."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from medical_diffusion_components.files import write_atomically
from medical_diffusion_components.metrics.bootstrap import bootstrap_mean

__all__ = ["dice_by_arm", "label_table", "plot_labels", "write_label_study"]


def dice_by_arm(results: Sequence[Mapping[str, Any]]) -> dict[str, dict[int, np.ndarray]]:
    """Results of a label study -> arm -> number of labelled patients -> Dice, (seeds, test patients).

    Dice is the mean over classes, and over the cases of a patient.

    Raises:
        ValueError: runs that were tested on different cases.
    """
    patients = results[0]["evaluation"]["patients"]
    dice: dict[str, dict[int, list[list[float]]]] = {}
    for result in sorted(results, key=lambda result: (result["num_labelled"], result["seed"])):
        evaluation = result["evaluation"]
        if evaluation["patients"] != patients:
            raise ValueError(
                f"{result['arm']}, seed {result['seed']}: expected the test cases {sorted(patients)}, got "
                f"{sorted(evaluation['patients'])}"
            )
        of_patient: dict[str, list[float]] = {patient: [] for patient in sorted(set(patients.values()))}
        for case, patient in patients.items():
            of_patient[patient].append(np.mean(list(evaluation["cases"][case]["dice"].values())))
        row = [float(np.mean(values)) for values in of_patient.values()]
        dice.setdefault(result["arm"], {}).setdefault(result["num_labelled"], []).append(row)
    return {arm: {number: np.array(rows) for number, rows in curve.items()} for arm, curve in dice.items()}


def label_table(dice: Mapping[str, Mapping[int, np.ndarray]], baseline: str) -> list[dict[str, Any]]:
    """A row per number of labelled patients and arm: mean Dice, its interval, and the gain over ``baseline``.

    The gain is paired: the same seeds and the same patients.
    """
    rows = []
    for number in sorted({number for curve in dice.values() for number in curve}):
        for arm, curve in dice.items():
            mean = bootstrap_mean(curve[number])
            row = {"labelled": number, "arm": arm, "dice": mean.mean, "low": mean.low, "high": mean.high}
            gain = bootstrap_mean(curve[number] - dice[baseline][number])
            rows.append({**row, "gain": gain.mean, "gain_low": gain.low, "gain_high": gain.high})
    return rows


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
    results: Sequence[Mapping[str, Any]], folder: str | Path, baseline: str, facts: Mapping[str, Any]
) -> None:
    """Write ``label_study.csv``, ``label_study.md`` and ``label_study.png`` into ``folder``, and print the table.

    Args:
        results: as ``LabelStudy.run`` returns them.
        folder: where to.
        baseline: the arm that gains are measured against.
        facts: what the line below the table says, such as the data and the number of seeds.
    """
    folder = Path(folder)
    dice = dice_by_arm(results)
    rows = label_table(dice, baseline)
    seeds, patients = next(iter(dice[baseline].values())).shape
    table = io.StringIO()
    writer = csv.DictWriter(table, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    text = [
        f"| labelled patients | arm | Dice (95 % interval) | gain over {baseline} (paired, 95 % interval) |",
        "|---|---|---|---|",
    ]
    for row in rows:
        value = f"{row['dice']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
        gain = f"{row['gain']:+.3f} ({row['gain_low']:+.3f} to {row['gain_high']:+.3f})"
        text.append(f"| {row['labelled']} | {row['arm']} | {value} | {'' if row['arm'] == baseline else gain} |")
    foot = "; ".join(f"{key}: {value}" for key, value in {**facts, "seeds": seeds, "test patients": patients}.items())
    markdown = "\n".join([*text, "", foot, ""])
    title = f"{patients} test patients, {seeds} seeds"
    write_atomically(folder / "label_study.csv", lambda temporary: temporary.write_text(table.getvalue()))
    write_atomically(folder / "label_study.md", lambda temporary: temporary.write_text(markdown))
    write_atomically(folder / "label_study.png", lambda temporary: plot_labels(rows, title).savefig(temporary))
    print(f"{markdown}\nplot: {folder / 'label_study.png'}", flush=True)
