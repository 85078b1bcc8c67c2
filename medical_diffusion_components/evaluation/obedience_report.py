"""Obedience in words, as tables, and as plots of asked against measured."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medical_diffusion_components.evaluation.obedience import CEILING, Points
from medical_diffusion_components.files import markdown_table
from medical_diffusion_components.pages.page import html_table

__all__ = ["obedience_in_words", "obedience_section", "obedience_tables"]

SIDE, MARGIN = 180, 34  # pixels of a plot and below and left of it
MOST_DOTS = 300
JITTER = 0.25  # of a category's width, so that equal pairs are seen beside one another
Found = Mapping[str, Mapping[str, Any]]
MEASURES = {
    "continuous": ("r2", "slope", "intercept", "bias", "rms"),
    "categories": ("accuracy", "balanced_accuracy"),
}


def obedience_in_words(found: Found) -> list[str]:
    """A sentence for every condition: what was asked against what was measured, and the same on real volumes.

    Args:
        found: ``obedience`` of ``evaluation.json``.
    """
    return [f"Obedience, {name}: {_sentence(one)}." for name, one in found.items()]


def _sentence(one: Mapping[str, Any]) -> str:
    first = MEASURES[one["kind"]][0]
    ours, real = (one["rows"].get(row, {}).get(first) for row in ("synthetic", CEILING))
    if not ours or ours["value"] is None:
        return "not measured, since too few volumes, or volumes of one value alone, were asked for"
    if one["kind"] == "continuous":
        slope = one["rows"]["synthetic"]["slope"]
        text = (
            f"what was asked explains {_pair(ours)} of the variance of what was measured, at a slope of {_pair(slope)}"
        )
        ceiling = "the true values of held-out volumes explain"
    else:
        text = f"what was asked was found in {_pair(ours)} of the volumes"
        ceiling = "on held-out volumes the truth was found in"
    compared = f"{ceiling} {_pair(real)}" if real and real["value"] is not None else "held-out volumes give no ceiling"
    return f"{text}; {compared}; shuffled conditions read {ours['shuffled']:.2g} ± {ours['shuffled_sd']:.1g}"


def _pair(cell: Mapping[str, Any]) -> str:
    error = "" if cell["se"] is None else f" ± {cell['se']:.1g}"
    return f"{cell['value']:.3g}{error}"


def obedience_tables(found: Found) -> list[str]:
    """Lines of Markdown: a table for every condition."""
    lines: list[str] = []
    for name, one in found.items():
        header, rows = _table(one)
        lines += ["", f"## obedience: {name}", "", _how(one) + ".", ""]
        lines += markdown_table(header, rows)
    return lines


def _how(one: Mapping[str, Any]) -> str:
    what = " or ".join(one["values"]) if one["kind"] == "categories" else one["unit"] or "no unit"
    return f"{what}; measured by {one['measured_by']} ({one['training_volumes']})"


def _table(one: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    measures = MEASURES[one["kind"]]
    rows = []
    for name, row in one["rows"].items():
        cells = [_cell(row.get(measure)) for measure in measures]
        first = row.get(measures[0])
        shuffled = f"{first['shuffled']:.3g} ± {first['shuffled_sd']:.1g}" if first and "shuffled" in first else ""
        rows.append([name, str(row["n"]), *cells, shuffled])
    return ["row", "n", *measures, f"{measures[0]}, shuffled"], rows


def _cell(cell: Mapping[str, Any] | None) -> str:
    if not cell or cell["value"] is None:
        return ""
    interval = cell.get("interval")
    return _pair(cell) + (f" ({interval[0]:.2g} to {interval[1]:.2g})" if interval else "")


def obedience_section(found: Found, points: Points) -> str:
    """A section of the page: tables, and a plot for every row of every condition, all plots of one with the same axes."""
    blocks = []
    for name, one in found.items():
        header, rows = _table(one)
        plots = "".join(_plot(row, pair, one, points[name]) for row, pair in points[name].items() if len(pair))
        blocks.append(
            f"<h3>{_text(name)}</h3><p class='soft'>{_text(_how(one))}</p>"
            f'{html_table(header, rows)}<div class="strips">{plots}</div>'
        )
    return (
        "<section><h2>Asked and measured</h2><p>Every dot is a volume: across, what was asked for (of real volumes: the "
        "truth); up, what was measured. The dashed line is where both are equal. <b>held out</b> is the ceiling: synthetic "
        f"volumes cannot be read better than real ones.</p>{''.join(blocks)}</section>"
    )


def _plot(row: str, pair: np.ndarray, one: Mapping[str, Any], all_rows: Mapping[str, np.ndarray]) -> str:
    everything = np.concatenate([some.ravel() for some in all_rows.values()])
    low, high = float(everything.min()), float(everything.max())
    shown = pair[:MOST_DOTS]
    if one["kind"] == "categories":
        low, high = -0.5, len(one["values"]) - 0.5
        angle = 2.4 * np.arange(len(shown))  # a spiral of equal areas
        radius = JITTER * np.sqrt((np.arange(len(shown)) + 0.5) / len(shown))
        shown = shown + np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)
    span = (high - low) or 1.0
    across = MARGIN + (shown[:, 0] - low) / span * SIDE
    up = SIDE + 6 - (shown[:, 1] - low) / span * SIDE
    dots = "".join(f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in zip(across, up))
    ends: Sequence[str] = (f"{low:.3g}", f"{high:.3g}")
    if one["kind"] == "categories":
        ends = one["values"][0], one["values"][-1]
    bottom, right = SIDE + 6, MARGIN + SIDE
    return (
        f"<figure><h3>{_text(row.replace('_', ' '))}, {len(pair)} volumes</h3>"
        f'<svg viewBox="0 0 {right + 10} {bottom + 20}" role="img" aria-label="asked and measured, {_text(row)}">'
        f'<line class="real" x1="{MARGIN}" y1="{bottom}" x2="{right}" y2="6"/>'
        f'<line class="axis" x1="{MARGIN}" y1="{bottom}" x2="{right}" y2="{bottom}"/>{dots}'
        f'<text class="soft" x="{MARGIN}" y="{bottom + 14}">{_text(ends[0])}</text>'
        f'<text class="soft" x="{right}" y="{bottom + 14}" text-anchor="end">{_text(ends[1])}</text></svg></figure>'
    )


def _text(value: Any) -> str:
    return html.escape(str(value))
