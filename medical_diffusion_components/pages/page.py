"""One self-contained page that shows what an evaluation found: in words, as dots against floors, and as volumes.

It asks for nothing over any network and works from a file: volumes are gzipped bytes inside the page.
"""

from __future__ import annotations

import base64
import gzip
import html
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.image import imsave

from medical_diffusion_components.files import write_atomically
from medical_diffusion_components.orientation import to_ras, world_axes

__all__ = [
    "Gallery",
    "PageCase",
    "PageRow",
    "PageVolume",
    "compared",
    "drawable",
    "html_table",
    "length_on_page",
    "strip_plot",
    "table_section",
    "write_page",
]

_PLOT = (320, 22)  # width of a strip plot and height of a row, in pixels
_LABELS = 96  # pixels that names of rows take


class PageVolume(NamedTuple):
    """One volume on the page."""

    name: str
    array: np.ndarray  # (H, W, D)
    window: tuple[float, float] = (-1.0, 1.0)  # intensities shown as black and white


class PageCase(NamedTuple):
    """Volumes that are looked at side by side."""

    title: str
    volumes: Sequence[PageVolume]
    text: str = ""
    difference: bool = False  # whether that of the first two is shown as well


class PageRow(NamedTuple):
    """Volumes of one kind, of which two slices each are shown in a row."""

    name: str
    volumes: Sequence[PageVolume]


class Gallery(NamedTuple):
    """Cases under one heading, one at a time in a viewer."""

    heading: str
    text: str
    cases: Sequence[PageCase]


def write_page(
    path: str | Path,
    title: str,
    sentences: Sequence[str],
    report: Mapping[str, Any],
    galleries: Sequence[Gallery],
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    axcodes: str = "RAS",
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
    notices: Sequence[str] = (),
    rows: Sequence[PageRow] = (),
    curves_are: tuple[str, str] = ("Training", "step"),
    sections: Sequence[str] = (),
) -> Path:
    """Write the page.

    Args:
        path: of the HTML file.
        title: its heading.
        sentences: what was found, in words.
        report: content of ``evaluation.json``.
        galleries: volumes to look at.
        spacing: mm per voxel along H, W, D of all volumes.
        axcodes: where H, W and D point in the patient.
        curves: name -> x and y.
        notices: what every reader must know, such as what the volumes were made from.
        rows: what is seen at first sight, one kind of volume below the other.
        curves_are: heading of the curves, and what runs along x.
        sections: further ones, in HTML, between volumes and measures.
    """
    store: dict[str, str] = {}
    viewers = [_gallery(one, store, spacing, axcodes) for one in galleries if one.cases]
    parts = [
        f"<h1>{_text(title)}</h1>",
        *(f'<p class="notice">{_text(notice)}</p>' for notice in notices if notice),
        '<ul class="lead">' + "".join(f"<li>{_text(sentence)}</li>" for sentence in sentences) + "</ul>",
        *(f'<p class="warning">{_text(warning)}</p>' for warning in report.get("warnings", ())),
        _rows(rows, spacing, axcodes),
        *viewers,
        *sections,
        _measures(report),
        _curves(curves or {}, *curves_are),
        _provenance(report),
    ]
    packed = "".join(f'<script type="text/plain" id="{name}">{text}</script>' for name, text in store.items())
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{_text(title)}</title><style>{_asset("page.css")}</style></head>\n'
        f"<body><main>{''.join(parts)}</main>\n{packed}\n<script>{_asset('viewer.js')}</script></body></html>\n"
    )
    return write_atomically(path, lambda temporary: temporary.write_text(page, encoding="utf-8"))


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath("page_assets", name).read_text(encoding="utf-8")


def _text(value: Any) -> str:
    return html.escape(str(value))


# --- volumes ---


def _gallery(gallery: Gallery, store: dict[str, str], spacing: Sequence[float], axcodes: str) -> str:
    cases = []
    for case in gallery.cases:
        volumes = [_packed(volume, store, spacing, axcodes) for volume in case.volumes]
        if case.difference:
            one, other = volumes[:2]
            volumes.append({**one, "name": "difference", "minus": other["id"]})
        cases.append({"title": case.title, "text": case.text, "volumes": volumes})
    listed = json.dumps(cases).replace("</", "<\\/")
    return (
        f"<section><h2>{_text(gallery.heading)}</h2><p>{_text(gallery.text)}</p>"
        '<div class="viewer"><div class="bar"><button class="previous" aria-label="previous case">←</button>'
        '<select aria-label="case"></select><button class="next" aria-label="next case">→</button>'
        '<button class="reset">reset view</button>'
        '<span class="soft">wheel or slider: slices; drag: window; click: cross; arrow keys: slices and cases</span></div>'
        f'<p class="text soft"></p><div class="volumes"></div><script type="application/json">{listed}</script>'
        "</div></section>"
    )


def _rows(rows: Sequence[PageRow], spacing: Sequence[float], axcodes: str) -> str:
    if not rows:
        return ""
    lengths, parts = _ras_spacing(spacing, axcodes), []
    for row in rows:
        tiles = []
        for volume in row.volumes:
            turned = _turned(volume, axcodes)
            slices = "".join(_slice(turned, lengths, axis, row.name) for axis in (0, 2))  # sagittal, axial
            tiles.append(f'<div class="tile">{slices}</div>')
        parts.append(f'<h3>{_text(row.name)}</h3><div class="tiles">{"".join(tiles)}</div>')
    return f'<section class="rows"><h2>At first sight</h2>{"".join(parts)}</section>'


def _slice(turned: np.ndarray, lengths: Sequence[float], axis: int, name: str) -> str:
    """The middle slice across an axis as an image, as wide and high as it is in the body."""
    picture = turned.take(turned.shape[axis] // 2, axis).T[::-1]  # up and to the front are at the top
    across, up = (turned.shape[a] * lengths[a] for a in range(3) if a != axis)
    file = io.BytesIO()
    plain: dict[str, Any] = {"Software": None}  # None leaves matplotlib's version out: the same bytes from the next one
    imsave(file, picture, cmap="gray", vmin=0, vmax=255, format="png", metadata=plain)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="{_text(name)}" style="aspect-ratio:{across:.4g}/{up:.4g}" src="data:image/png;base64,{data}">'


def _turned(volume: PageVolume, axcodes: str) -> np.ndarray:
    """In bytes, axes pointing to the right, to the front and up."""
    low, high = volume.window
    levels = np.clip((np.asarray(volume.array, dtype=np.float32) - low) / (high - low) * 255, 0, 255)
    return np.ascontiguousarray(to_ras(np.rint(levels).astype(np.uint8), axcodes))


def _ras_spacing(spacing: Sequence[float], axcodes: str) -> list[float]:
    lengths = [0.0, 0.0, 0.0]
    for (axis, _), length in zip(world_axes(axcodes), spacing):
        lengths[axis] = float(length)
    return lengths


def length_on_page(volume: PageVolume) -> int:
    """Bytes that a volume takes in the page's file: noise hardly packs, so it takes up to three times as many as others."""
    return len(_text_of(_turned(volume, "RAS")))


def _text_of(levels: np.ndarray) -> str:
    return base64.b64encode(gzip.compress(levels.tobytes(), 9, mtime=0)).decode()


def _packed(volume: PageVolume, store: dict[str, str], spacing: Sequence[float], axcodes: str) -> dict[str, Any]:
    """The volume turned to right, anterior, superior, in bytes; one and the same volume is stored once."""
    turned = _turned(volume, axcodes)
    text = _text_of(turned)
    known = {packed: name for name, packed in store.items()}
    name = known.get(text) or f"volume_{len(store)}"
    store[name] = text
    lengths = _ras_spacing(spacing, axcodes)
    return {"id": name, "name": volume.name, "shape": list(turned.shape), "spacing": lengths}


# --- numbers ---


def table_section(heading: str, text: str, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A section with a table, for ``sections`` of :func:`write_page`."""
    return f"<section><h2>{_text(heading)}</h2><p>{_text(text)}</p>{html_table(header, rows)}</section>"


def html_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table in HTML. The first column names the rows; a table wider than the screen scrolls."""
    head = "".join(f"<th>{_text(cell)}</th>" for cell in header)
    body = "".join(
        f"<tr><th>{_text(row[0])}</th>{''.join(f'<td>{_text(cell)}</td>' for cell in row[1:])}</tr>" for row in rows
    )
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


_ARROWS = {
    "lower": "lower is better",
    "higher": "higher is better",
    "near_one": "1 is best",
    "near_real": "as real is best",
}


def _measures(report: Mapping[str, Any]) -> str:
    rows = report.get("rows", {})
    if not rows:
        return ""
    first = rows["synthetic"]
    blocks: list[str] = []
    kinds: set[str] = set()  # one space of each kind is enough to see at once: slices in one plane, anatomy
    for space in first:
        facts = report.get("spaces", {}).get(space, {})
        figures = [
            strip_plot(measure, {row: rows[row][space][measure] for row in rows if measure in rows[row].get(space, {})})
            for measure in first[space]
        ]
        judged = "" if facts.get("counts", True) else " For comparison alone."
        kind = space.split("_")[0]
        opened = " open" if facts.get("counts", True) and kind not in kinds else ""
        kinds.add(kind)
        blocks.append(
            f"<details{opened}><summary>{_text(space)}</summary><p class='soft'>{_text(facts.get('what', ''))}{judged}</p>"
            f'<div class="strips">{"".join(figures)}</div></details>'
        )
    meaning = "".join(f"<li><b>{_text(row)}</b>: {_text(what)}</li>" for row, what in report["what_rows_are"].items())
    return (
        "<section><h2>Measures</h2><p>A dot is a value, its line two standard errors. The green band is the floor: what "
        "two halves of the held-out patients read, with two standard deviations. A value inside the band shows no "
        "difference.</p>"
        f"<ul>{meaning}</ul>{''.join(blocks)}</section>"
    )


def strip_plot(measure: str, cells: Mapping[str, Mapping[str, Any]]) -> str:
    """Rows of one measure as dots with intervals against the floor's band, as a figure in HTML.

    Rows without a value, an error or a floor are left out; without any row the figure is empty.

    Args:
        measure: its name.
        cells: row -> cell of ``evaluation.json``.
    """
    usable = drawable(cells)
    if not usable:
        return ""
    some = next(iter(usable.values()))
    ends = [some["floor"] - 2 * some["floor_sd"], some["floor"] + 2 * some["floor_sd"]]
    for cell in usable.values():
        ends += [compared(cell) - 2 * cell["se"], compared(cell) + 2 * cell["se"]]
    if "real" in some:
        ends.append(some["real"])
    low, high = min(ends), max(ends)
    span = (high - low) or 1.0
    width, step = _PLOT
    height = step * len(usable) + 20

    def x(value: float) -> float:
        return _LABELS + (value - low) / span * (width - _LABELS - 12) + 4

    left, right = x(ends[0]), x(ends[1])
    lines = [f'<rect class="floor" x="{left:.1f}" y="0" width="{max(right - left, 1):.1f}" height="{height - 18}"/>']
    if "real" in some:
        lines.append(
            f'<line class="real" x1="{x(some["real"]):.1f}" x2="{x(some["real"]):.1f}" y1="0" y2="{height - 18}"/>'
        )
    for number, (row, cell) in enumerate(usable.items()):
        y, value = step * number + step / 2, compared(cell)
        lines.append(f'<text x="0" y="{y + 4:.1f}">{_text(row.replace("_", " "))}</text>')
        lines.append(
            f'<line class="whisker" x1="{x(value - 2 * cell["se"]):.1f}" x2="{x(value + 2 * cell["se"]):.1f}" '
            f'y1="{y}" y2="{y}"/><circle class="dot" cx="{x(value):.1f}" cy="{y}" r="4">'
            f"<title>{_text(row)}: {value:.4g} ± {cell['se']:.2g}</title></circle>"
        )
    lines.append(f'<line class="axis" x1="{_LABELS}" x2="{width}" y1="{height - 17}" y2="{height - 17}"/>')
    lines.append(f'<text class="soft" x="{_LABELS}" y="{height - 4}">{low:.3g}</text>')
    lines.append(f'<text class="soft" x="{width}" y="{height - 4}" text-anchor="end">{high:.3g}</text>')
    real = f"; dashed: real, {some['real']:.4g}" if "real" in some else ""
    values = "; ".join(f"{row.replace('_', ' ')} {compared(c):.4g} ± {c['se']:.2g}" for row, c in usable.items())
    return (
        f'<figure><h3>{_text(measure)}</h3><svg viewBox="0 0 {width} {height}" role="img" aria-label="{_text(values)}">'
        f"{''.join(lines)}</svg><figcaption>{_ARROWS[some['better']]}; floor {some['floor']:.3g} ± {some['floor_sd']:.2g}"
        f"{real}. {_text(values)}</figcaption></figure>"
    )


def drawable(cells: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The rows of a measure that have a value, an error and a floor."""
    drawn = ("value", "se", "floor", "floor_sd")
    return {row: cell for row, cell in cells.items() if all(_finite(cell.get(name)) for name in drawn)}


def compared(cell: Mapping[str, Any]) -> float:
    """The value at the number of volumes of the floor, where it depends on the number."""
    return float(cell["at_floor_n"] if _finite(cell.get("at_floor_n")) else cell["value"])


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _curves(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], heading: str, along: str) -> str:
    finite = {name: [(x, y) for x, y in zip(*points) if _finite(y)] for name, points in curves.items()}
    figures = [_curve(name, points, along) for name, points in finite.items() if len(points) > 1]
    if not figures:
        return ""
    return f'<section><h2>{_text(heading)}</h2><div class="strips">{"".join(figures)}</div></section>'


def _curve(name: str, pairs: Sequence[tuple[float, float]], along: str, width: int = 320, height: int = 130) -> str:
    pairs = pairs[:: max(1, len(pairs) // 400)]
    xs, ys = [a for a, _ in pairs], [b for _, b in pairs]
    spans = (max(xs) - min(xs)) or 1, (max(ys) - min(ys)) or 1
    points = " ".join(
        f"{(a - min(xs)) / spans[0] * width:.1f},{height - 14 - (b - min(ys)) / spans[1] * (height - 24):.1f}"
        for a, b in pairs
    )
    return (
        f'<figure><h3>{_text(name)}</h3><svg viewBox="0 0 {width} {height}" role="img" aria-label="{_text(name)}">'
        f'<polyline class="curve" points="{points}"/><text class="soft" x="0" y="10">{max(ys):.3g}</text>'
        f'<text class="soft" x="0" y="{height - 2}">{min(ys):.3g}</text>'
        f'<text class="soft" x="{width}" y="{height - 2}" text-anchor="end">{_text(along)} {max(xs):g}</text>'
        "</svg></figure>"
    )


def _provenance(report: Mapping[str, Any]) -> str:
    left_out = {"rows", "spaces", "warnings", "what_rows_are", "audit", "older_figures", "obedience"}
    rows = "".join(f"<tr><th>{_text(k)}</th><td>{_text(v)}</td></tr>" for k, v in _flat(report, left_out))
    return f'<section><h2>How this was made</h2><div class="scroll"><table>{rows}</table></div></section>'


def _flat(content: Mapping[str, Any], left_out: set[str], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in content.items():
        if key in left_out:
            continue
        if isinstance(value, Mapping):
            yield from _flat(value, set(), f"{prefix}{key}: ")
        else:
            yield f"{prefix}{key}".replace("_", " "), value
