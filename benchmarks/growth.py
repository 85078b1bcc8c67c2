"""How a training step of either stage grows: time and memory against volume, batch, codes, depth and width.

    python benchmarks/growth.py [--bundle adni_ldm] [--output benchmarks/results] [--quick] [--series depth]

From one small setting, one number is varied at a time; each point is a process of its own (see `bundle_step.py`) that
makes --steps steps and reports the median time of all but the first, and its peak memory. Writes growth.csv and
growth.png to --output and prints, for each series, the slope in a log-log plot from its first to its last point (1:
twice the size, twice the time), the memory that each further million voxels (or positions of the latent) take, and what
that would make of a volume of 512x512x256. All points together take about ten minutes on two quiet cores.
"""

from __future__ import annotations

import argparse
import csv
import math
import statistics
from pathlib import Path
from typing import Any

from bundle_step import measure_apart
from measuring import RESULTS

# stage -> (the common setting, {what is varied: (knob, values)})
SERIES: dict[str, tuple[dict[str, Any], dict[str, tuple[str, list]]]] = {
    "autoencoder": (
        {"image_size": [32, 32, 32], "autoencoder_batch_size": 2, "num_codes": 4096},
        {
            "volume": ("image_size", [[16, 16, 16], [24, 24, 24], [32, 32, 32], [48, 48, 48], [64, 64, 64]]),
            "depth": ("image_size", [[32, 32, 8], [32, 32, 16], [32, 32, 32], [32, 32, 64]]),
            "batch": ("autoencoder_batch_size", [1, 2, 4, 8]),
            "codes": ("num_codes", [1024, 4096, 16384, 65536]),
        },
    ),
    "diffusion": (
        {"image_size": [32, 32, 32], "batch_size": 2, "denoiser_channels": 16},
        {
            "volume": ("image_size", [[16, 16, 16], [32, 32, 32], [48, 48, 48], [64, 64, 64]]),
            "depth": ("image_size", [[32, 32, 16], [32, 32, 32], [32, 32, 64], [32, 32, 128]]),
            "batch": ("batch_size", [1, 2, 4, 8]),
            "width": ("denoiser_channels", [16, 32, 64]),
        },
    ),
}
LARGE = (512, 512, 256)
LARGE_COMPRESSION = 8


def size_of(stage: str, series: str, result: dict[str, Any]) -> int:
    """The number that the series varies: voxels, latent positions, batch, codes or channels."""
    if series in ("volume", "depth"):
        return math.prod(result["image_size"] if stage == "autoencoder" else result["latent_shape"][1:])
    return result[SERIES[stage][1][series][0]]


def slope(points: list[dict[str, Any]], key: str) -> float:
    """Exponent of the power law through the first and the last point."""
    first, last = points[0], points[-1]
    return math.log(last[key] / first[key]) / math.log(last["size"] / first["size"])


def measure_all(bundle: str, steps: int, quick: bool, wanted: list[str]) -> list[dict[str, Any]]:
    """One row for each point of the wanted series; a point that several series share is measured once."""
    rows, seen = [], {}
    for stage, (common, series) in SERIES.items():
        for name in (name for name in series if name in wanted):
            knob, values = series[name]
            for value in values[:2] if quick else values:
                setting = common | {knob: value}
                if (stage, str(setting)) not in seen:
                    seen[stage, str(setting)] = measure_apart(bundle, stage, steps, **setting)
                result = seen[stage, str(setting)]
                row = {
                    "stage": stage,
                    "series": name,
                    "value": "x".join(map(str, value)) if isinstance(value, list) else value,
                    "size": size_of(stage, name, result),
                    "seconds": statistics.median(result["seconds"]),
                    "gigabytes": result["peak_mib"] * 2**20 / 1e9,
                }
                rows.append(row)
                print("{stage:12}{series:8}{value!s:>12}{seconds:9.2f} s{gigabytes:7.2f} GB".format(**row), flush=True)
    return rows


def in_words(rows: list[dict[str, Any]]) -> str:
    """Powers of all series, and what the volume series would make of a large volume."""
    lines = ["", "Power with which time grows from the first to the last point:"]
    for stage, (_, series) in SERIES.items():
        for name in series:
            points = [row for row in rows if (row["stage"], row["series"]) == (stage, name)]
            lines.append(f"  {stage:12}{name:8}{slope(points, 'seconds'):5.2f}")
    for stage, (common, _) in SERIES.items():
        *_, before, last = (row for row in rows if (row["stage"], row["series"]) == (stage, "volume"))
        added = last["size"] - before["size"]
        seconds, gigabytes = ((last[key] - before[key]) / added for key in ("seconds", "gigabytes"))
        size = math.prod(LARGE) if stage == "autoencoder" else math.prod(LARGE) // LARGE_COMPRESSION**3
        further = size - last["size"]
        what = "voxels" if stage == "autoencoder" else f"latent positions (compression {LARGE_COMPRESSION})"
        batch = common["autoencoder_batch_size" if stage == "autoencoder" else "batch_size"]
        lines.append(
            f"{stage}: a further million {what} takes {seconds * 1e6:.1f} s and {gigabytes * 1e6:.2f} GB at batch {batch}"
            f". In a straight line from there, {'x'.join(map(str, LARGE))}, {size / last['size']:.0f} times the largest "
            f"measured, would take {last['seconds'] + further * seconds:.0f} s a step and "
            f"{last['gigabytes'] + further * gigabytes:.0f} GB: not measured, an order of magnitude."
        )
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], file: Path) -> None:
    """Time above, memory below, one column for each series, both stages in it."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter

    names = list(dict.fromkeys(row["series"] for row in rows))
    labels = {"volume": "voxels / latent positions", "depth": "voxels / latent positions (deeper)"}
    # one scale of seconds and one of memory, so that what does not grow looks flat
    size = (2.6 * len(names), 5.5)
    figure, axes = plt.subplots(2, len(names), figsize=size, sharey="row", layout="constrained", squeeze=False)
    for column, name in enumerate(names):
        for stage in SERIES:
            points = [row for row in rows if (row["stage"], row["series"]) == (stage, name)]
            for axis, key in zip(axes[:, column], ("seconds", "gigabytes")):
                axis.loglog([p["size"] for p in points], [p[key] for p in points], "o-", label=stage)
                for one in (axis.xaxis, axis.yaxis):
                    one.set_major_locator(LogLocator(subs=(1, 2, 5) if one is axis.yaxis else (1,)))
                    one.set_major_formatter("{x:g}")
                    one.set_minor_formatter(NullFormatter())
                if name in ("batch", "width"):
                    axis.set_xticks(sorted({row["size"] for row in rows if row["series"] == name}))
                axis.grid(alpha=0.3)
        axes[0, column].set_title(name)
        axes[1, column].set_xlabel(labels.get(name, name))
    axes[0, 0].set_ylabel("seconds a step")
    axes[1, 0].set_ylabel("peak GB of the process")
    axes[0, 0].legend()
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", default="adni_ldm", help="folder below bundles/")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder to write to")
    parser.add_argument("--steps", type=int, default=3, help="steps of each measurement, the first untimed")
    parser.add_argument("--quick", action="store_true", help="only the first two points of each series")
    names = list(dict.fromkeys(name for _, series in SERIES.values() for name in series))
    parser.add_argument("--series", nargs="+", choices=names, default=names, help="what is varied; all by default")
    args = parser.parse_args()

    rows = measure_all(args.bundle, args.steps, args.quick, args.series)
    args.output.mkdir(parents=True, exist_ok=True)
    with open(args.output / "growth.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    draw(rows, args.output / "growth.png")
    if not args.quick and args.series == names:  # two small points show no growth
        print(in_words(rows))
    print(f"written: {args.output / 'growth.csv'} and growth.png")


if __name__ == "__main__":
    main()
