"""An evaluation in words and tables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from medical_diffusion_components.evaluation.copies import copies_in_words
from medical_diffusion_components.evaluation.obedience_report import obedience_in_words, obedience_tables
from medical_diffusion_components.files import markdown_table

__all__ = ["headline", "markdown", "rounded"]

ARROWS = {"lower": "↓", "higher": "↑", "near_one": "→ 1", "near_real": "→ real"}
DIGITS = 5
OTHER_DATA = (
    "The generator was not trained on these data: rows of samples say how far apart the two are, not how well it was "
    "trained, and `training` is not its training set."
)


def rounded(value: Any) -> Any:
    """Numbers to five significant digits, deep in dictionaries and lists."""
    if isinstance(value, Mapping):
        return {str(key): rounded(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(one) for one in value]
    if isinstance(value, float) and math.isfinite(value) and value != 0:
        return round(value, DIGITS - 1 - math.floor(math.log10(abs(value))))
    return value


def headline(report: Mapping[str, Any]) -> list[str]:
    """What was found: one sentence for all, then one each for texture, anatomy, variety and copies.

    In front of them stands a warning where the generator was trained on other data.
    """
    row = report["rows"]["synthetic"]
    slices = [name for name, one in report["spaces"].items() if one["counts"] and name.startswith("slices")]
    averaged = {}
    if slices:
        averaged["texture"] = _Average.of([row[name]["kid"] for name in slices])
    if "anatomy" in row:
        averaged["anatomy"] = _Average.of([row["anatomy"]["mmd"]])
    found = " and ".join(f"{one.in_short()} in {name}" for name, one in averaged.items()) or "in what follows"
    sentences = [OTHER_DATA] if report.get("trained_on_these") is False else []
    sentences += [f"Samples differ from held-out volumes {found}; {copies_in_words(report.get('audit'))}."]
    measures = {"texture": "Texture (KID of slices)", "anatomy": "Anatomy (MMD of block averages)"}
    sentences += [f"{measures[name]}: {one.in_words()}." for name, one in averaged.items()]
    pairs = row["volumes"].get("ms_ssim")
    if pairs:
        more = "less" if pairs["value"] > pairs["real"] else "more"
        apart, error = abs(pairs["value"] - pairs["real"]), math.hypot(pairs["se"], pairs["real_se"])
        verdict = "as varied as real ones" if apart <= 2 * error else f"{more} varied than real ones"
        sentences.append(
            f"Variety: MS-SSIM of pairs {pairs['value']:.3f} ± {pairs['se']:.3f}, real {pairs['real']:.3f} ± "
            f"{pairs['real_se']:.3f}: {verdict}."
        )
    sentences += obedience_in_words(report.get("obedience", {}))
    if report.get("audit"):
        sentences.append(f"Copies: {report['audit']['headline']}")
    return sentences


class _Average(NamedTuple):
    """Cells of several spaces as one, against their floors.

    The spaces describe the same volumes, so their errors go together: that of the mean is at most the mean of the errors,
    and not much smaller, whereas independent spaces would have one smaller by the root of their number.
    """

    value: float
    error: float
    floor: float
    spread: float  # of the floor
    volumes: int  # of the smaller set

    @classmethod
    def of(cls, cells: list[Mapping[str, Any]]) -> _Average:
        def mean(key: str) -> float:
            return sum(cell[key] for cell in cells) / len(cells)

        return cls(mean("value"), mean("se"), mean("floor"), mean("floor_sd"), min(cells[0]["n"], cells[0]["m"]))

    @property
    def times(self) -> float | None:
        """By how many of the floor's standard deviations the value exceeds it; None where errors explain it."""
        excess = self.value - self.floor
        return None if excess <= 2 * math.hypot(self.error, self.spread) else excess / max(self.spread, 1e-12)

    def in_short(self) -> str:
        none = f"by nothing that {self.volumes} volumes can show"
        return none if self.times is None else f"by {self.times:.0f} times the floor's spread"

    def in_words(self) -> str:
        verdict = (
            f"no difference that {self.volumes} volumes can show"
            if self.times is None
            else f"different, {self.times:.0f} times the floor's spread"
        )
        return (
            f"{self.value:.3g} ± {self.error:.2g}, two halves of the held-out volumes read "
            f"{self.floor:.2g} ± {self.spread:.2g}: {verdict}"
        )


def markdown(report: Mapping[str, Any]) -> str:
    """The whole report as Markdown: sentences, warnings, a table for every space."""
    counts = ", ".join(f"{number} {name.replace('_', ' ')}" for name, number in report["n"].items())
    lines = ["# Evaluation", "", *(f"* {sentence}" for sentence in headline(report)), "", f"Volumes: {counts}. "]
    lines += [f"Protocol {report['protocol']}; numbers of other protocols do not compare.", ""]
    lines += [f"**Note.** {warning}." for warning in report["warnings"]]
    if report["metrics"]:
        shown = ", ".join(f"{name} {value:.4g}" for name, value in report["metrics"].items())
        lines += ["", f"First stage on held-out volumes: {shown}."]
    if report["older_figures"]:
        lines += ["", _older(report["older_figures"])]
    for space in [*report["spaces"], "volumes"]:
        lines += ["", f"## {space}", ""]
        if space in report["spaces"]:
            facts = report["spaces"][space]
            judged = "" if facts["counts"] else " For comparison alone."
            lines += [f"{facts['what']}; {facts['dims']} numbers.{judged}", ""]
        lines += _table(report["rows"], space)
    lines += obedience_tables(report.get("obedience", {}))
    lines += [
        "",
        "Value ± standard error (of the first stage: mean ± SD over halvings). Floor: two halves of the held-out",
    ]
    lines += ["patients, mean ± SD over 20 halvings. In brackets: the value at the floor's number of volumes.", ""]
    lines += [f"* {name}: {what}." for name, what in report["what_rows_are"].items()]
    return "\n".join(lines) + "\n"


def _older(found: Mapping[str, Any]) -> str:
    both = (f"{found[name]['value']:.4g} ± {found[name]['sd']:.2g}" for name in ("synthetic", "held_out_halves"))
    return "For comparison with older papers alone: {}: {}; two halves of the held-out volumes: {}.".format(
        found["what"], *both
    )


def _table(rows: Mapping[str, Any], space: str) -> list[str]:
    measures = list(rows["synthetic"][space])
    lines = []
    for measure in measures:
        cells = [row[space].get(measure) for row in rows.values()]
        first = rows["synthetic"][space][measure]
        floor = f"{first['floor']:.4g} ± {first['floor_sd']:.2g} (n {first['floor_n']})"
        texts = [_cell(cell) for cell in cells]
        real = "" if "real" not in first else f"{first['real']:.4g} ± {first['real_se']:.2g}"
        lines.append([f"{measure} {ARROWS[first['better']]}", floor, *texts, real])
    return markdown_table(["measure", "floor", *rows, "real"], lines)


def _cell(cell: Mapping[str, Any] | None) -> str:
    if cell is None or cell["value"] is None:
        return ""
    text = f"{cell['value']:.4g} ± {cell['se']:.2g}"
    if "at_floor_n" in cell and cell["n"] != cell["floor_n"]:
        text += f" ({cell['at_floor_n']:.4g})"
    if "p" in cell:
        text += f", p = {cell['p']:.3g}"
    return text
