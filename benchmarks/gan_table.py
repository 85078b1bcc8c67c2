"""The table of ``gan_comparison.py``: a row for each kind of generator, floors above, what is missing below."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from table import markdown

__all__ = ["make_table"]

# heading, space, measure; "slices" is the mean of the planes'
COLUMNS = (
    ("KID, slices", "slices", "kid"),
    ("MMD, slices", "slices", "mmd"),
    ("FD, slices", "slices", "fd"),
    ("KID, anatomy", "anatomy", "kid"),
    ("MMD, anatomy", "anatomy", "mmd"),
    ("FD, anatomy", "anatomy", "fd"),
    ("MS-SSIM of pairs", "volumes", "ms_ssim"),
)


def cell(row: Mapping[str, Any], space: str, measure: str) -> dict[str, float]:
    """Value, error and floor of one measure; of "slices", means over the planes, whose errors are not independent."""
    names = [name for name in row["spaces"] if name.startswith("slices_") and name[7:] in ("yz", "zx", "xy")]
    cells = [row["spaces"][name][measure] for name in (names if space == "slices" else [space])]
    return {
        key: statistics.fmean(one[key] for one in cells) for key in ("value", "se", "floor", "real") if key in cells[0]
    }


def spread(values: Sequence[float], errors: Sequence[float]) -> str:
    """Mean and standard deviation over seeds; of a single seed, value and standard error over volumes."""
    if len(values) == 1:
        return f"{values[0]:.3g} ± {errors[0]:.1g}"
    return f"{statistics.fmean(values):.3g} ± {statistics.stdev(values):.1g}"


def make_table(result: Mapping[str, Any]) -> str:
    """Markdown: a row for each kind of generator and target, floors above, what is missing below."""
    rows = result["rows"]
    if not rows:
        return f"No training is finished. Not run: {', '.join(result['not_run'])}.\n"
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["generator"], row["at"]), []).append(row)
    first = [cell(rows[0], space, measure) for _, space, measure in COLUMNS]
    lines = [
        [
            "held-out volumes (halves; MS-SSIM: all)",
            "",
            "",
            "",
            *(f"{one.get('real', one['floor']):.3g}" for one in first),
        ]
    ]
    for (generator, at), members in groups.items():
        cells = [[cell(row, space, measure) for row in members] for _, space, measure in COLUMNS]
        lines.append(
            [
                f"{generator}, {at}" if at else generator,
                *history_cells(members),
                *(spread([one["value"] for one in some], [one["se"] for one in some]) for some in cells),
            ]
        )
    sizes = "; ".join(
        f"{bundle}: " + ", ".join(f"{name.replace('_', ' ')} {size:.2f}" for name, size in networks.items())
        for bundle, networks in result["parameters_in_millions"].items()
    )
    changed = [f"{id} {value}" for knobs in result["changed_settings"].values() for id, value in knobs.items()]
    n = rows[0]["n"]
    unit = f"{result['minutes_of']} minutes"
    header = ["generator", "seeds", "volumes seen", unit, *(heading for heading, _, _ in COLUMNS)]
    notes = [
        f"Scale `{result['scale']}`, {'x'.join(map(str, result['image_size']))} voxels, {n['training']} training volumes; "
        f"{n['synthetic']} samples against {n['reference']} held-out volumes. Millions of parameters: {sizes}.",
        "± is the standard deviation between seeds, or of a single seed the standard error over volumes. MS-SSIM should be "
        "as of held-out volumes; all else lower is better.",
        f"Changed settings: {', '.join(changed) or 'none'}. Not run: {', '.join(result['not_run']) or 'nothing'}.",
    ]
    return "\n".join([*markdown(header, lines), "", "\n".join(notes), ""])


def history_cells(members: Sequence[Mapping[str, Any]]) -> list[str]:
    """Seeds, volumes seen and minutes; of finished weights, how many training volumes they have seen."""
    if "seed" not in members[0]:
        return ["", f"of {members[0]['trained_on'] or 'unknown'} training volumes", ""]
    return [
        ", ".join(str(row["seed"]) for row in members),
        f"{statistics.fmean(row['volumes'] for row in members):,.0f}",
        f"{statistics.fmean(row['seconds'] for row in members) / 60:.1f}",
    ]
