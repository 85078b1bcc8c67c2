"""Which conditions a synthetic volume is made under: asked for, or drawn as they occur together among training patients.

What the weights' note keeps of the patients is a table of counts: how many have each combination of categories and of
bins of the continuous variables. It holds no row of a patient, and no combination that fewer than ``min_patients`` have.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from medical_diffusion_components.chance import numpy_generator, seed_of_name
from medical_diffusion_components.data.conditions import Conditions, Variable, category_text
from medical_diffusion_components.data.tables import table_lines

__all__ = ["RequestedConditions", "condition_strata", "stratum_part"]

BINS = (8, 4, 2, 1)  # of a continuous variable's range, the finest first
KEPT = 0.9  # share of the patients that the table is to count
Request = Mapping[str, Any] | str | None


def condition_strata(conditions: Conditions, cases: Sequence[Mapping[str, Any]], min_patients: int = 5) -> dict:
    """For the weights' note: how many training patients have each combination of conditions.

    A continuous variable's range is cut into 8, 4 or 2 equal bins, or none: the most with which 90 % of the patients are in
    a combination that at least ``min_patients`` have. The others are not counted at all.

    Args:
        conditions: those that the training declares.
        cases: as ``load_cases`` returns them; a patient counts once in each combination that its volumes have.
        min_patients: at least 1.

    Returns:
        empty without conditions; else ``condition_strata``, a list of
        ``{"stratum": {"age": [70.0, 75.0], "sex": "F"}, "patients": 12}``, in which a missing value is None, and
        ``conditions_sha256``, a hash of all values.

    Raises:
        ValueError: ``min_patients`` below 1, and as :meth:`Conditions.of_cases` raises it.
    """
    if not conditions:
        return {}
    if min_patients < 1:
        raise ValueError(f"expected min_patients_in_note to be at least 1, got {min_patients}")
    values = [conditions.decode(vector) for vector in conditions.of_cases(cases)]
    kept: dict[str, int] = {}
    for bins in BINS:
        patients: dict[str, set[str]] = {}
        for case, given in zip(cases, values):
            stratum = {
                variable.name: stratum_part(variable, given[variable.name], bins) for variable in conditions.variables
            }
            patients.setdefault(json.dumps(stratum), set()).add(str(case["patient_id"]))
        kept = {stratum: len(ids) for stratum, ids in sorted(patients.items()) if len(ids) >= min_patients}
        if sum(kept.values()) >= KEPT * sum(map(len, patients.values())):
            break
    table = sorted((str(case["case_id"]), json.dumps(given)) for case, given in zip(cases, values))
    return {
        "condition_strata": [{"stratum": json.loads(stratum), "patients": kept[stratum]} for stratum in kept],
        "conditions_sha256": hashlib.sha256(json.dumps(table).encode()).hexdigest(),
    }


def stratum_part(variable: Variable, value: Any, bins: int) -> Any:
    """The bin ``[low, high]`` of a continuous value; a category, or None, as it is."""
    if value is None or variable.values:
        return value
    margin = 1e-5 * (variable.high - variable.low)  # values have been rounded
    if not variable.low - margin <= value <= variable.high + margin:
        return f"below {variable.low:g}" if value < variable.low else f"above {variable.high:g}"
    edges = np.linspace(variable.low, variable.high, bins + 1)
    place = min(max(int(np.searchsorted(edges, value, side="right")), 1), bins) - 1
    return [float(edges[place]), float(edges[place + 1])]


class RequestedConditions:
    """Seed of a volume -> its conditions as a vector (V,): what was asked for, the rest drawn.

    What is left out is drawn from the training's strata that agree with what was asked for, in proportion to their
    patients, and evenly within a bin; it follows from the volume's seed. A value of None asks for nothing: there the model
    is left to itself.

    Args:
        conditions: those that the weights were trained with.
        request: name -> value for all volumes, also as JSON text; or a ``.csv`` or ``.tsv`` file with a column for each
            declared condition and a row for each volume, in which an empty cell is left out and ``n/a`` is None; or None.
        strata: as :func:`condition_strata` makes them.
        seed: of the first volume.
        num_volumes: how many rows a table must have.
        allow_extrapolation: accept values outside the range that was trained on.
        min_patients: refuse what fewer training patients have, as far as the strata tell; 0 refuses nothing.

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: a request that :meth:`Conditions.encode` refuses, of no declared condition, or of another form; a table
            without a declared column, with rows of several lengths or with another number of rows; a combination that too
            few training patients have, when made if it is that of one of ``num_volumes``, else when called.
    """

    def __init__(
        self,
        conditions: Conditions,
        request: Request = None,
        strata: Sequence[Mapping[str, Any]] = (),
        seed: int = 0,
        num_volumes: int | None = None,
        allow_extrapolation: bool = False,
        min_patients: int = 0,
    ) -> None:
        self.conditions = conditions
        self.strata = list(strata)
        self.seed = int(seed)
        self.allow_extrapolation = allow_extrapolation
        self.min_patients = min_patients
        self.rows = _rows(conditions, request, num_volumes)
        for number, row in enumerate(self.rows):  # before the first volume rather than at the last
            conditions.encode(row, self._where(number), allow_extrapolation)
        for number in range(num_volumes or 0) if conditions else ():
            self(self.seed + number)

    def __call__(self, seed: int) -> Tensor:
        number = int(seed) - self.seed
        given = self.rows[number % len(self.rows)]
        where = self._where(number)
        drawn = (
            given if given.keys() >= set(self.conditions.names) else {**self._drawn(given, int(seed), where), **given}
        )
        patients = sum(stratum["patients"] for stratum in self._agreeing(drawn))
        if patients < self.min_patients:
            raise ValueError(
                f"{where}: expected a combination of conditions that at least {self.min_patients} training patients have "
                f"(min_patients_per_condition), but {drawn} has {patients} in the weights' note"
            )
        return self.conditions.encode(drawn, where, self.allow_extrapolation)

    def _where(self, number: int) -> str:
        return f"conditions of volume {number}" if len(self.rows) > 1 else "conditions"

    def _agreeing(self, given: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """Strata that what is given may be in."""

        def holds(stratum: Mapping[str, Any], variable: Variable) -> bool:
            part, value = stratum[variable.name], given.get(variable.name)
            if value is None or part is None:
                return value is None
            return part == category_text(value) if variable.values else part[0] <= value <= part[1]

        return [s for s in self.strata if all(holds(s["stratum"], v) for v in self.conditions.variables)]

    def _drawn(self, given: Mapping[str, Any], seed: int, where: str) -> dict[str, Any]:
        agreeing = self._agreeing(given)
        if not agreeing:
            raise ValueError(
                f"{where}: no combination that the weights' note counts agrees with {dict(given)}, so the rest cannot be "
                f"drawn: give all of {', '.join(self.conditions.names)}"
            )
        generator = numpy_generator(seed, seed_of_name("conditions"))
        patients = np.array([stratum["patients"] for stratum in agreeing], np.float64)
        chosen = agreeing[generator.choice(len(agreeing), p=patients / patients.sum())]["stratum"]
        return {
            name: round(float(generator.uniform(*part)), 6) if isinstance(part, list) else part
            for name, part in sorted(chosen.items())
        }


def _rows(conditions: Conditions, request: Request, num_volumes: int | None) -> list[dict[str, Any]]:
    if isinstance(request, str) and request.lstrip().startswith("{"):  # as an annotation server passes it
        try:
            request = json.loads(request)
        except ValueError as error:
            raise ValueError(f'expected conditions as JSON, such as {{"age": 71}}, got {request!r}: {error}') from error
    if request is None or request == "":
        return [{}]
    if not conditions:
        raise ValueError(f"expected no conditions, since the weights were trained without any, got {request!r}")
    if isinstance(request, Mapping):
        return [dict(request)]
    if not isinstance(request, str) or not request.lower().endswith((".csv", ".tsv")):
        raise ValueError(f"expected conditions as a mapping or as the path of a .csv or .tsv table, got {request!r}")
    path = Path(request).expanduser()
    columns, *lines = [cells for cells in table_lines(path) if cells] or [[]]
    if missing := [name for name in conditions.names if columns.count(name) != 1]:
        wanted = ", ".join(conditions.names)
        raise ValueError(
            f"{path}: expected the columns {wanted}, but {missing[0]} is missing or there twice; got {columns}"
        )
    if other := next((cells for cells in lines if len(cells) != len(columns)), None):
        raise ValueError(f"{path}: expected {len(columns)} cells in every row, got {other}")
    if not lines or len(lines) != (num_volumes or len(lines)):
        raise ValueError(f"{path}: expected one row for each of {num_volumes} volumes (num_volumes), got {len(lines)}")
    categories = {variable.name for variable in conditions.variables if variable.values}
    return [{name: _cell(text, name in categories) for name, text in zip(columns, line) if text} for line in lines]


def _cell(text: str, category: bool) -> Any:
    try:
        return None if text == "n/a" else text if category else float(text)
    except ValueError:
        return text  # which is refused by its name
