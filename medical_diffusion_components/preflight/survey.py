"""What is found out about a set of scans: their headers, a look at some of their voxels, which are unlike the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from medical_diffusion_components.preflight.contact_sheet import SheetCell, framed_first
from medical_diffusion_components.preflight.headers import ScanFacts
from medical_diffusion_components.preflight.look import Look, likeness, turned
from medical_diffusion_components.preflight.outliers import Quantity, merged, name_outliers, name_rare

__all__ = ["Survey", "table_of"]

MOST_PICTURES = 64
_AXES = ("right", "front", "up")
_SHAPES = [Quantity(f"voxels to the {axis}" if axis != "up" else "voxels up", "", 0.1) for axis in _AXES]
_SPACINGS = [Quantity(f"spacing to the {axis}" if axis != "up" else "spacing up", "mm", 0.05) for axis in _AXES]
_EXTENTS = [Quantity(f"length to the {axis}" if axis != "up" else "length up", "mm", 0.07) for axis in _AXES]
_RANGE = Quantity("range of intensities", "", 0.3)
_LIKENESS = Quantity("likeness to the others", "", 0.03, ratio=False, low_only=True)
_BINS = 8
_BAR = 24  # characters


@dataclass
class Survey:
    """Facts of scans by case id, in the order of case ids.

    Attributes:
        facts: of headers.
        looks: at voxels, of some of the cases.
        refused: case id -> why `prepare` or training would refuse the case.
        remarks: case id -> what they would remark on.
        aside: case id -> code and text of why the file is no image, so that `prepare` leaves it aside.
        landmarks: case id -> those of a scan that was looked at, by which a copy is known.
    """

    facts: dict[str, ScanFacts] = field(default_factory=dict)
    looks: dict[str, Look] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    remarks: dict[str, list[str]] = field(default_factory=dict)
    aside: dict[str, tuple[str, str]] = field(default_factory=dict)
    landmarks: dict[str, str] = field(default_factory=dict)
    # with the facts and looks that they are from
    _outliers: tuple[list[object], dict[str, list[str]]] = field(default_factory=lambda: ([], {}))

    def add(self, facts: ScanFacts) -> None:
        """Take in a header."""
        self.facts[facts.case_id] = facts
        if facts.refused:
            self.refused[facts.case_id] = facts.refused
        if facts.remarks:
            self.remarks[facts.case_id] = list(facts.remarks)

    def remark(self, case_id: str, notes: Mapping[str, Any]) -> None:
        """Take in the notes of `prepare` that are true."""
        known = self.remarks.get(case_id, [])
        if new := [name for name, value in notes.items() if value is True and name not in known]:
            self.remarks[case_id] = [*known, *new]

    def forget(self, case_id: str) -> None:
        """Take out what is no scan, so that it is compared with nothing."""
        for known in (self.facts, self.looks, self.refused, self.remarks, self.landmarks):
            known.pop(case_id, None)

    def header_outliers(self) -> dict[str, list[str]]:
        """Case id -> in what its header is unlike the others'."""
        numbers = [name_outliers(quantity, values) for quantity, values in self._header_numbers()]
        known = {case: facts for case, facts in self.facts.items() if facts.spacing}
        rare = [
            name_rare("size", {case: "x".join(map(str, facts.shape or ())) for case, facts in known.items()}),
            name_rare("plane", {case: facts.plane for case, facts in known.items()}),
            name_rare("modality", {case: facts.modality for case, facts in known.items() if facts.modality}),
        ]
        return merged(*numbers, *rare)

    def outliers(self) -> dict[str, list[str]]:
        """Case id -> in what its header or its voxels are unlike the others'."""
        compared: list[object] = [*self.facts.values(), *self.looks.values()]
        if [*map(id, compared)] != [*map(id, self._outliers[0])]:
            self._outliers = (compared, self._find_outliers())
        return self._outliers[1]

    def _find_outliers(self) -> dict[str, list[str]]:
        found = self.header_outliers()
        ranges = {case: look.intensities[3] - look.intensities[1] for case, look in self.looks.items()}
        likes = name_outliers(_LIKENESS, likeness(self.looks))
        for finding in (name_outliers(_RANGE, ranges), likes, turned(self.looks)):
            for case, text in finding.items():
                found.setdefault(case, []).insert(0, text)  # the picture says it better than the header
        return dict(sorted(found.items()))

    def order_of_looks(self) -> list[str]:
        """Whom to look at, in this order: cases that stand out by their headers, then others spread over all."""
        suspect = {**dict.fromkeys(self.header_outliers(), ""), **dict.fromkeys(self.refused, "")}
        return framed_first(suspect, list(self.facts), MOST_PICTURES)

    def cells(self) -> list[SheetCell]:
        """The contact sheet's, the framed ones first."""
        outliers = self.outliers()
        framed = {case: _in_short(why) for case, why in outliers.items() if case in self.looks}
        framed = {case: "would be refused" for case in self.refused if case in self.looks} | framed
        shown = framed_first(framed, list(self.looks), MOST_PICTURES)
        return [SheetCell(case, self.looks[case].planes, framed.get(case, "")) for case in shown]

    def tables(self) -> dict[str, dict[str, Any]]:
        """Name -> histogram: ``count``, and by value, or by ``from``, ``to`` and the numbers between."""
        known = [facts for facts in self.facts.values() if facts.shape]
        found: dict[str, dict[str, Any]] = {
            "format": _counted(facts.kind for facts in self.facts.values()),
            "size (voxels right x front x up)": _counted("x".join(map(str, facts.shape or ())) for facts in known),
            "plane of thick slices": _counted(facts.plane for facts in known if facts.plane),
            "modality": _counted(facts.modality for facts in known if facts.modality),
            "axes as stored": _counted(facts.orientation for facts in known if facts.orientation),
        }
        for quantity, values in self._header_numbers():
            if quantity in _SPACINGS or quantity in _EXTENTS:
                found[f"{quantity.name} ({quantity.unit})"] = table_of(list(values.values()))
        for name, place in (("lowest intensity", 0), ("median intensity", 2), ("highest intensity", 4)):
            found[name] = table_of([look.intensities[place] for look in self.looks.values()])
        return {name: table for name, table in found.items() if table["count"]}

    def _header_numbers(self) -> list[tuple[Quantity, dict[str, float]]]:
        known = {case: facts for case, facts in self.facts.items() if facts.shape and facts.spacing}
        found = []
        for axis in range(3):
            spacings = {case: float(facts.spacing[axis]) for case, facts in known.items() if facts.spacing}
            shapes = {case: float(facts.shape[axis]) for case, facts in known.items() if facts.shape}
            extents = {case: spacings[case] * shapes[case] for case in known}
            found += [(_SHAPES[axis], shapes), (_SPACINGS[axis], spacings), (_EXTENTS[axis], extents)]
        return found


def _in_short(why: Sequence[str]) -> str:
    return why[0] if len(why) == 1 else f"{why[0]} and {len(why) - 1} more"


def table_of(values: Sequence[float]) -> dict[str, Any]:
    """Numbers of values in up to 8 bins of one width, between the smallest and the largest."""
    finite = np.array([value for value in values if np.isfinite(value)])
    if not len(finite):
        return {"count": 0}
    low, high = float(finite.min()), float(finite.max())
    numbers = np.histogram(finite, bins=_BINS, range=(low, high))[0].tolist() if high > low else [len(finite)]
    return {"count": len(finite), "from": low, "median": float(np.median(finite)), "to": high, "bins": numbers}


def table_lines(name: str, table: Mapping[str, Any]) -> list[str]:
    """A histogram in lines of text."""
    if "bins" not in table:
        most = max(table["values"].values())
        shown = list(table["values"].items())[:12]
        lines = [f"{value:>24} {number:6d} {_bar(number, most)}" for value, number in shown]
        rest = len(table["values"]) - len(shown)
        return [name, *lines, *([f"{'others':>24} {rest:6d} values"] if rest else [])]
    width = (table["to"] - table["from"]) / len(table["bins"])
    most = max(table["bins"])
    lines = []
    for place, number in enumerate(table["bins"]):
        start = table["from"] + place * width
        span = f"{start:.4g} to {start + width:.4g}" if width else f"{start:.4g}"
        lines.append(f"{span:>24} {number:6d} {_bar(number, most)}")
    return [f"{name}: median {table['median']:.4g}", *lines]


def _bar(number: int, most: int) -> str:
    return "#" * max(1, round(_BAR * number / most)) if number else ""


def _counted(values: Iterable[str]) -> dict[str, Any]:
    counts = Counter(values)
    return {"count": sum(counts.values()), "values": dict(counts.most_common())}
