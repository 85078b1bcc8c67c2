"""An evaluation in words and tables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

__all__ = ["headline", "markdown", "rounded"]

ARROWS = {"lower": "↓", "higher": "↑", "near_one": "→ 1", "near_real": "→ real"}
DIGITS = 5


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
    """What was found, in one sentence for texture, one for anatomy and one for variety."""
    row = report["rows"]["synthetic"]
    sentences = []
    slices = [name for name, one in report["spaces"].items() if one["counts"] and name.startswith("slices")]
    if slices:
        sentences.append(f"Texture (KID of slices): {_against_floor([row[name]['kid'] for name in slices])}.")
    if "anatomy" in row:
        sentences.append(f"Anatomy (MMD of block averages): {_against_floor([row['anatomy']['mmd']])}.")
    pairs = row["volumes"].get("ms_ssim")
    if pairs:
        more = "less" if pairs["value"] > pairs["real"] else "more"
        apart = abs(pairs["value"] - pairs["real"])
        verdict = "as varied as real ones" if apart <= 2 * pairs["se"] else f"{more} varied than real ones"
        sentences.append(
            f"Variety: MS-SSIM of pairs {pairs['value']:.3f} ± {pairs['se']:.3f}, real {pairs['real']:.3f}: {verdict}."
        )
    return sentences


def _against_floor(cells: list[Mapping[str, Any]]) -> str:
    count = len(cells)
    value = sum(cell["value"] for cell in cells) / count
    error = math.sqrt(sum(cell["se"] ** 2 for cell in cells)) / count
    spread = math.sqrt(sum(cell["floor_sd"] ** 2 for cell in cells)) / count
    floor = sum(cell["floor"] for cell in cells) / count
    where = f"{value:.3g} ± {error:.2g}, two halves of the held-out volumes read {floor:.2g} ± {spread:.2g}"
    if value - floor <= 2 * math.hypot(error, spread):
        return f"{where}: no difference that {cells[0]['n']} volumes can show"
    return f"{where}: different, {(value - floor) / max(spread, 1e-12):.0f} times the floor's spread"


def markdown(report: Mapping[str, Any]) -> str:
    """The whole report as Markdown: sentences, warnings, a table for every space."""
    counts = ", ".join(f"{number} {name.replace('_', ' ')}" for name, number in report["n"].items())
    lines = ["# Evaluation", "", *(f"* {sentence}" for sentence in headline(report)), "", f"Volumes: {counts}. "]
    lines += [f"Protocol {report['protocol']}; numbers of other protocols do not compare.", ""]
    lines += [f"**Note.** {warning}." for warning in report["warnings"]]
    if report["metrics"]:
        shown = ", ".join(f"{name} {value:.4g}" for name, value in report["metrics"].items())
        lines += ["", f"First stage on held-out volumes: {shown}."]
    for space in [*report["spaces"], "volumes"]:
        lines += ["", f"## {space}", ""]
        if space in report["spaces"]:
            facts = report["spaces"][space]
            judged = "" if facts["counts"] else " For comparison alone."
            lines += [f"{facts['what']}; {facts['dims']} numbers.{judged}", ""]
        lines += _table(report["rows"], space)
    lines += [
        "",
        "Value ± standard error (of the first stage: mean ± SD over halvings). Floor: two halves of the held-out",
    ]
    lines += ["patients, mean ± SD over 20 halvings. In brackets: the value at the floor's number of volumes.", ""]
    lines += [f"* {name}: {what}." for name, what in report["what_rows_are"].items()]
    return "\n".join(lines) + "\n"


def _table(rows: Mapping[str, Any], space: str) -> list[str]:
    measures = list(rows["synthetic"][space])
    lines = ["| measure | floor | " + " | ".join(rows) + " | real |", "| --- |" + " --- |" * (len(rows) + 2)]
    for measure in measures:
        cells = [row[space].get(measure) for row in rows.values()]
        first = rows["synthetic"][space][measure]
        floor = f"{first['floor']:.4g} ± {first['floor_sd']:.2g} (n {first['floor_n']})"
        texts = [_cell(cell) for cell in cells]
        real = "" if "real" not in first else f"{first['real']:.4g}"
        lines.append(f"| {measure} {ARROWS[first['better']]} | {floor} | " + " | ".join(texts) + f" | {real} |")
    return lines


def _cell(cell: Mapping[str, Any] | None) -> str:
    if cell is None or cell["value"] is None:
        return ""
    text = f"{cell['value']:.4g} ± {cell['se']:.2g}"
    if "at_floor_n" in cell and cell["n"] != cell["floor_n"]:
        text += f" ({cell['at_floor_n']:.4g})"
    if "p" in cell:
        text += f", p = {cell['p']:.3g}"
    return text
