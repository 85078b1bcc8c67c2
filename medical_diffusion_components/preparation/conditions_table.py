"""The user's own table of what is known of cases or patients, on which a generator can be conditioned."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from medical_diffusion_components.data.tables import table_lines

__all__ = ["ConditionsTable", "read_conditions_table"]

IDS = ("case", "patient")
MISSING = ("", "n/a")


class ConditionsTable(NamedTuple):
    """``column`` is ``case`` or ``patient``; ``rows`` are id -> name -> number or text, missing values left out."""

    column: str
    rows: Mapping[str, Mapping[str, float | str]]
    name: str  # of the file

    def check(self, known: Sequence[str]) -> None:
        """Refuse a table with an id that is not ``known``.

        Raises:
            ValueError: naming the id.
        """
        if unknown := sorted(self.rows.keys() - set(known)):
            raise ValueError(
                f"{self.name}: {self.column} {unknown[0]!r} is none of the {len(set(known))} in raw_dir"
                f" ({len(unknown)} such rows); the first there is {min(known, default=None)!r}"
            )

    def of(self, case_id: str, patient_id: str) -> dict[str, float | str]:
        """What the table says of a case; empty if it has no row for it."""
        return dict(self.rows.get(case_id if self.column == "case" else patient_id, {}))


def read_conditions_table(path: str | os.PathLike) -> ConditionsTable:
    """A table in text, see ``table_lines``, with a column ``case`` or ``patient`` and one column for each condition.

    An empty cell, or ``n/a``, is a missing value. What reads as a number is one, all else is text.

    Raises:
        ValueError: neither or both of the two columns, no other column, a name that is no identifier or stands twice, a
            row of another length, without an id or with one that came before, or a number that is not finite.
    """
    path = Path(path).expanduser()
    header, *lines = table_lines(path) or [[]]
    ids = [name for name in IDS if name in header]
    names = [name for name in header if name not in IDS]
    if len(ids) != 1 or not names:
        raise ValueError(
            f"{path.name}: expected a column case or a column patient, and one for each condition; got {header}"
        )
    for name in header:
        if not name.isidentifier() or header.count(name) > 1:
            raise ValueError(f"{path.name}: expected each column once, named in letters, digits and _; got {name!r}")
    rows: dict[str, dict[str, float | str]] = {}
    for number, cells in enumerate(lines, start=2):
        row = dict(zip(header, cells))
        if not any(row.values()):
            continue
        where = f"{path.name}, line {number}"
        if len(cells) != len(header) or not row[ids[0]]:
            raise ValueError(f"{where}: expected {len(header)} cells with a {ids[0]}, got {len(cells)}")
        if row[ids[0]] in rows:
            raise ValueError(f"{where}: {ids[0]} {row[ids[0]]!r} is listed twice")
        rows[row[ids[0]]] = {
            name: _value(row[name], f"{where}, {name}") for name in names if row[name].lower() not in MISSING
        }
    return ConditionsTable(ids[0], rows, path.name)


def _value(cell: str, where: str) -> float | str:
    try:
        number = float(cell)
    except ValueError:
        return cell
    if not math.isfinite(number):
        raise ValueError(f"{where}: expected a finite number or text, got {cell!r}; leave a missing value empty")
    return number
