"""Write down how well a test split was segmented: every case, every class, means with confidence intervals."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ignite.engine import Engine, Events

from medical_diffusion_components.engine_state import running
from medical_diffusion_components.files import check_writable, versions, write_atomically, write_json
from medical_diffusion_components.metrics.bootstrap import bootstrap_mean
from medical_diffusion_components.reports.drawing import save_montage
from medical_diffusion_components.reports.segmentation_montage import SegmentationPictures

__all__ = ["MeanWithInterval", "SegmentationReport", "mean_over_patients"]


class MeanWithInterval(NamedTuple):
    """A mean over patients; ``low`` and ``high`` are None where fewer than two patients leave the interval undefined."""

    mean: float | None
    low: float | None
    high: float | None
    patients: int


def mean_over_patients(values: Sequence[float], patients: Sequence[str]) -> MeanWithInterval:
    """Mean of the patients' means and its 95 % bootstrap interval; NaN counts as not measured.

    Args:
        values: one per case.
        patients: whose case it is.
    """
    by_patient: dict[str, list[float]] = defaultdict(list)
    for value, patient in zip(values, patients):
        if np.isfinite(value):
            by_patient[patient].append(float(value))
    means = np.array([np.mean(found) for found in by_patient.values()])
    if len(means) == 0:
        return MeanWithInterval(None, None, None, 0)
    if len(means) == 1:
        return MeanWithInterval(float(means[0]), None, None, 1)
    return MeanWithInterval(*bootstrap_mean(means[None]), patients=len(means))


class SegmentationReport:
    """Attached to an evaluator of one-hot segmentations, write ``evaluation.json``, ``.csv`` and ``.png``.

    ``evaluation.json`` has under ``cases`` for every case and metric the value of every class that its label has, under
    ``patients`` whose case it is, and under ``metrics`` the means over patients: of each class, and of the classes' mean
    (``mean``). ``missed`` counts structures that are in the label and not at all in the prediction: their Dice is 0, and
    they have no distance. The Dice of a class that a label does not have is not defined: such cases count in no mean.
    ``absent`` counts them for each class, and under ``invented`` those of them in which the class was predicted; ``all``
    is of cases whose label is background alone.

    Args:
        folder: where they go.
        classes: name -> value, with the background.
        metrics: names of the evaluator's metrics that have a value per case and class without the background; the first
            is Dice.
        facts: what else goes into the report, such as the hash of the weights.
        patients: case id -> patient id; cases that are not listed are their own patient.
        shown: of the montage: ``image_key``, the entry of the output with the volume, on the grid of the label ("image"),
            ``num_volumes`` (6), ``spacing`` in mm and ``axcodes``.
    """

    def __init__(
        self,
        folder: str | Path,
        classes: Mapping[str, int],
        metrics: Sequence[str],
        facts: Mapping[str, Any],
        patients: Mapping[str, str] | None = None,
        **shown: Any,
    ) -> None:
        self.folder = Path(folder)
        self.names = [name for name, value in sorted(classes.items(), key=lambda item: item[1]) if value > 0]
        self.metrics = list(metrics)
        self.facts = dict(facts)
        self.patients = dict(patients or {})
        self.pictures = SegmentationPictures(**shown)
        self.case_ids: list[str] = []
        self.present: list[list[bool]] = []  # of each case, whether its label has each class
        self.predicted: list[list[bool]] = []  # and whether the prediction has it

    def attach(self, evaluator: Engine) -> None:
        evaluator.add_event_handler(Events.STARTED, lambda _: check_writable(self.folder))
        evaluator.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        evaluator.add_event_handler(Events.COMPLETED, self)

    def _collect(self, evaluator: Engine) -> None:
        state = running(evaluator)
        cases = [{**given, **made} for given, made in zip(state.batch, state.output)]
        self.case_ids += [str(case["case_id"]) for case in cases]
        for key, found in (("label", self.present), ("pred", self.predicted)):
            found += [case[key][1:].flatten(1).any(1).tolist() for case in cases]
        self.pictures.collect(cases)

    def __call__(self, evaluator: Engine) -> None:
        found = running(evaluator).metric_details
        values = {metric: np.asarray(found[metric].cpu()) for metric in self.metrics}  # (cases, C - 1) each
        dice, *distances = values.values()
        report = {
            "metrics": {metric: self._means(values[metric]) for metric in self.metrics},
            "missed": int((np.isfinite(dice) & np.isnan(distances[0])).sum()) if distances else 0,
            "absent": self._absent(),
            **self.facts,
            "patients": dict(zip(self.case_ids, self._patients())),
            "cases": self._by_case(values),
            "versions": versions(),
        }
        self._write(report)
        print(self._summary(report), flush=True)

    def _by_case(self, values: Mapping[str, np.ndarray]) -> dict[str, dict[str, dict[str, float]]]:
        """Case -> metric -> class -> value; classes without one are left out."""
        return {
            case_id: {
                metric: {name: round(float(v), 5) for name, v in zip(self.names, rows[number]) if np.isfinite(v)}
                for metric, rows in values.items()
            }
            for number, case_id in enumerate(self.case_ids)
        }

    def _absent(self) -> dict[str, dict[str, int]]:
        """Class -> in how many cases the label does not have it, and in how many of these the prediction has."""
        present, predicted = (np.array(found).reshape(-1, len(self.names)) for found in (self.present, self.predicted))
        columns = {"all": (~present.any(1), predicted.any(1))}
        columns |= {name: (~here, there) for name, here, there in zip(self.names, present.T, predicted.T)}
        return {
            name: {"cases": int(gone.sum()), "invented": int((gone & there).sum())}
            for name, (gone, there) in columns.items()
        }

    def _patients(self) -> list[str]:
        """Whose case each is, in the order of ``case_ids``."""
        return [self.patients.get(case_id, case_id) for case_id in self.case_ids]

    def _means(self, values: np.ndarray) -> dict[str, dict[str, Any]]:
        measured = np.isfinite(values).sum(1)
        mean = np.where(measured > 0, np.nansum(values, axis=1) / np.maximum(measured, 1), np.nan)
        columns = {"mean": mean, **dict(zip(self.names, values.T))}
        return {name: mean_over_patients(column, self._patients())._asdict() for name, column in columns.items()}

    def _write(self, report: Mapping[str, Any]) -> None:
        table = io.StringIO()
        writer = csv.writer(table)
        writer.writerow(["case_id", "patient_id", "class", *self.metrics])
        for case_id, found in report["cases"].items():
            for name in self.names:
                values = [found[metric].get(name, "") for metric in self.metrics]
                writer.writerow([case_id, self.patients.get(case_id, case_id), name, *values])
        write_atomically(self.folder / "evaluation.csv", lambda temporary: temporary.write_text(table.getvalue()))
        write_json(self.folder / "evaluation.json", report)
        save_montage(self.pictures.figure(), self.folder / "evaluation.png")

    def _summary(self, report: Mapping[str, Any]) -> str:
        """The report in a few lines, for the terminal."""
        lines = [
            f"{metric}: {', '.join(f'{name} {_interval(mean)}' for name, mean in means.items())}"
            for metric, means in report["metrics"].items()
        ]
        lines.append(f"{len(self.case_ids)} cases, structures missed altogether: {report['missed']}")
        empty = report["absent"]["all"]
        if empty["cases"]:
            lines.append(
                f"{empty['cases']} cases have no structure in their label and count in no mean; in {empty['invented']} of "
                "them the prediction has one"
            )
        return "\n".join([*lines, f"montage: {self.folder / 'evaluation.png'}"])


def _interval(value: Mapping[str, Any]) -> str:
    if value["mean"] is None:
        return "not measured"
    limits = "" if value["low"] is None else f" ({value['low']:.4g} to {value['high']:.4g})"
    return f"{value['mean']:.4g}{limits}"
