"""Do volumes have what they were asked for? Asked against measured, beside a ceiling and a floor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from medical_diffusion_components.chance import numpy_generator
from medical_diffusion_components.data.conditions import Conditions, Variable, category_text
from medical_diffusion_components.evaluation.comparison import VolumeSet
from medical_diffusion_components.evaluation.feature_space import FeatureSpace
from medical_diffusion_components.evaluation.measured_conditions import FORMULAS, Instrument, fitted_instrument
from medical_diffusion_components.metrics.jackknife import Estimate, group_jackknife

__all__ = ["Obedience", "ObedienceFound", "agreement", "hit_rates"]

Cases = Sequence[Mapping[str, Any]]
Points = dict[str, dict[str, np.ndarray]]
SHUFFLES = 200
SHUFFLED = ("r2", "accuracy", "balanced_accuracy")  # measures with a floor
FEWEST = 4  # volumes with a value, of which a jackknife leaves three for a line
CEILING, DECODED = "held_out", "first_stage"
NAMES = {"reference": CEILING, "reconstructions": DECODED}  # sets of real volumes, whose true values are known
NOT_JUDGED = ("training", "baseline")
WILSON = 1.959964  # two-sided 95 %


class ObedienceFound(NamedTuple):
    """What goes into ``evaluation.json``, and the points that it was computed from."""

    report: dict[str, Any]  # condition -> kind, unit, how it was measured, rows
    points: Points  # condition -> row -> (n, 2) asked (of real volumes: true) and measured


class Obedience:
    """Measures every declared condition on synthetic and on held-out volumes.

    Rows: ``held_out``, true against measured, is the ceiling, and ``first_stage`` the same after encoding and decoding;
    ``synthetic``, and further sets of synthetic volumes by their own names, are asked against measured. Beside each stand
    the same numbers with the conditions shuffled between its volumes, the floor. Volumes without a value are left out.

    Args:
        conditions: those that the weights were trained with.
        training: real volumes' cases, with ``conditions``.
        reference: as ``training``, held-out ones.
        formulas: whether the data are an embedded cohort, whose quantities have formulas.
        seed: of the shuffles.

    Raises:
        ValueError: a declared condition of which no training or no held-out case has a value; it is named.
    """

    def __init__(
        self, conditions: Conditions, training: Cases, reference: Cases, formulas: bool = False, seed: int = 0
    ) -> None:
        self.conditions = conditions
        for some in (training, reference):
            conditions.of_cases(some)
        self.formulas = FORMULAS if formulas else {}
        self.seed = seed

    def __call__(
        self,
        cases: Mapping[str, Cases],
        sets: Mapping[str, VolumeSet],
        spaces: Mapping[str, FeatureSpace],
        read: Callable[[Mapping[str, Any]], Tensor],
    ) -> ObedienceFound:
        """Measure.

        Args:
            cases: set -> cases: ``training``, ``reference``, and any others, each with ``conditions`` asked for or true.
            sets: their features.
            spaces: those that the features are of; the ones that judge are used.
            read: case -> volume (C, H, W, D) in [-1, 1].
        """
        judged = [name for name in cases if name not in NOT_JUDGED]
        judged.sort(key=lambda name: (name not in NAMES, name != "synthetic", name))
        report: dict[str, Any] = {}
        points: Points = {}
        for place, variable in enumerate(self.conditions.variables):
            inputs = self._inputs(variable, cases, sets, spaces, read)
            instrument = self._instrument(variable, inputs["training"], self._values(cases["training"])[:, place])
            rows: dict[str, Any] = {}
            points[variable.name] = {}
            for name in judged:
                asked = self._values(cases[name])[:, place]
                known = np.isfinite(asked)
                pair = np.stack([asked[known], instrument.read(inputs[name][known])], 1)
                row = NAMES.get(name, name)
                points[variable.name][row] = pair
                rows[row] = self._row(variable, pair, sets[name].groups[known])
            report[variable.name] = {
                "kind": "categories" if variable.values else "continuous",
                "values" if variable.values else "unit": list(variable.values) or variable.unit,
                "measured_by": instrument.how,
                "training_volumes": instrument.training_volumes,
                "rows": rows,
            }
        return ObedienceFound(report, points)

    def _values(self, cases: Cases) -> np.ndarray:
        """(N, V): a category's place, a number in its unit, NaN where missing or not asked for."""
        found = np.full((len(cases), len(self.conditions.variables)), np.nan)
        for number, case in enumerate(cases):
            given = case.get("conditions") or {}
            for place, variable in enumerate(self.conditions.variables):
                value = given.get(variable.name)
                if value is not None and variable.values:
                    found[number, place] = variable.values.index(category_text(value))
                elif value is not None:
                    found[number, place] = float(value)
        return found

    def _inputs(
        self,
        variable: Variable,
        cases: Mapping[str, Cases],
        sets: Mapping[str, VolumeSet],
        spaces: Mapping[str, FeatureSpace],
        read: Callable[[Mapping[str, Any]], Tensor],
    ) -> dict[str, np.ndarray]:
        """What an instrument reads, (N, F) for every set: a formula's values, or standardised features of all spaces."""
        if formula := self.formulas.get(variable.name):
            return {
                name: np.array([[formula(read(case)[0].numpy())] for case in some])
                for name, some in cases.items()
                if name != "baseline"
            }
        training = sets["training"].features
        judges = [name for name, space in spaces.items() if space.counts]
        return {
            name: np.concatenate(
                [
                    spaces[space].standardise(one.features[space], training[space]) / training[space].shape[1] ** 0.5
                    for space in judges
                ],
                axis=1,
            )
            for name, one in sets.items()
        }

    def _instrument(self, variable: Variable, inputs: np.ndarray, truth: np.ndarray) -> Instrument:
        how = "ridge regression of the features of training volumes"
        if formula := self.formulas.get(variable.name):
            how = f"formula {formula.__name__}, scaled on training volumes"
        return fitted_instrument(variable, inputs, truth, how)

    def _row(self, variable: Variable, pair: np.ndarray, groups: np.ndarray) -> dict[str, Any]:
        if len(np.unique(groups)) < FEWEST:
            return {"n": len(pair)}
        rng = numpy_generator(self.seed, 4)
        shuffled = [np.stack([rng.permutation(pair[:, 0]), pair[:, 1]], 1) for _ in range(SHUFFLES)]
        statistics = hit_rates(len(variable.values)) if variable.values else agreement()
        row: dict[str, Any] = {"n": len(pair)}
        for name, statistic in statistics.items():
            found = group_jackknife(lambda kept, of=statistic: of(pair[kept]), groups)
            row[name] = _cell(found)
            if name in SHUFFLED and row[name]["value"] is not None:
                chance = [statistic(one) for one in shuffled]
                row[name] |= {"shuffled": float(np.mean(chance)), "shuffled_sd": float(np.std(chance, ddof=1))}
        if variable.values:
            row["accuracy"]["interval"] = list(_wilson(row["accuracy"]["value"], len(pair)))
        return row


def agreement() -> dict[str, Callable[[np.ndarray], float]]:
    """Statistics of (n, 2) asked and measured numbers.

    ``slope`` and ``intercept`` are of the least-squares line of measured on asked (1 and 0 where asked is obeyed), ``r2``
    is the share of the measured variance that this line explains, ``bias`` the mean of measured minus asked and ``rms``
    the root of the mean square. Without two different numbers asked, or measured, the first three are NaN.
    """

    def line(pair: np.ndarray) -> tuple[float, float, float]:
        asked, measured = pair.T
        if np.ptp(asked) == 0 or np.ptp(measured) == 0:
            return np.nan, np.nan, np.nan
        covariance = np.cov(asked, measured)
        slope = covariance[0, 1] / covariance[0, 0]
        return slope * covariance[0, 1] / covariance[1, 1], slope, measured.mean() - slope * asked.mean()

    return {
        "r2": lambda pair: float(line(pair)[0]),
        "slope": lambda pair: float(line(pair)[1]),
        "intercept": lambda pair: float(line(pair)[2]),
        "bias": lambda pair: float((pair[:, 1] - pair[:, 0]).mean()),
        "rms": lambda pair: float(np.sqrt(np.square(pair[:, 1] - pair[:, 0]).mean())),
    }


def hit_rates(categories: int) -> dict[str, Callable[[np.ndarray], float]]:
    """Statistics of (n, 2) asked and measured categories, as whole numbers below ``categories``.

    ``balanced_accuracy`` is the mean of the accuracies of those categories that were asked for.
    """

    def balanced(pair: np.ndarray) -> float:
        hits = pair[:, 0] == pair[:, 1]
        return float(
            np.mean([hits[pair[:, 0] == one].mean() for one in range(categories) if (pair[:, 0] == one).any()])
        )

    return {"accuracy": lambda pair: float((pair[:, 0] == pair[:, 1]).mean()), "balanced_accuracy": balanced}


def _cell(found: Estimate) -> dict[str, Any]:
    """JSON has no NaN: what cannot be computed is None."""
    value, error = (number if np.isfinite(number) else None for number in found)
    return {"value": value, "se": error}


def _wilson(share: float, count: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson, Journal of the American Statistical Association 22, 1927)."""
    z2 = WILSON**2
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = WILSON / (1 + z2 / count) * np.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    return float(middle - half), float(middle + half)
