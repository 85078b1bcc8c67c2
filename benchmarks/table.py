"""The README's table of measurements, made from ``results/``.

    python benchmarks/table.py [--readme]

Prints it; with ``--readme`` it replaces what stands between the two marks in the README. Rows whose result is missing are
left out. A result is written by its benchmark with ``--save``, together with the machine that it was measured on;
`sampling.py` writes a folder of its own, whose ``sampling.json`` is copied: calls are counted, on whatever machine.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from measuring import RESULTS

from medical_diffusion_components.files import write_atomically

README = Path(__file__).resolve().parents[1] / "README.md"
MARKS = ("<!-- made by benchmarks/table.py -->", "<!-- end -->")
FIRST_STAGE, DENOISER = ([64, 64, 64], 2, 16384), ([32, 32, 32], 32)  # sizes that targets are for
NOT_WORSE = 2.0  # standard errors of a difference


def read(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())


def ratio(result: dict[str, Any], slow: str, fast: str, key: str = "seconds") -> float:
    return result["medians"][slow][key] / result["medians"][fast][key]


def speed(result: dict[str, Any], slow: str, fast: str) -> str:
    """Both ratios of time, in words."""
    user, elapsed = (ratio(result, slow, fast, key) for key in ("user", "seconds"))
    return f"{user:.1f}x in processor time, {elapsed:.1f}x elapsed"


def times(*sizes: int) -> str:
    return "x".join(map(str, sizes))


def first_stage(found: dict[str, Any]) -> list[list[str]]:
    sizes = f"{times(*found['size'])}, batch {found['batch']}, {found['codes']:,} codes"
    against = "plain eager form: distance matrix, one-hot codes, everything run again for the discriminators"
    memory = ratio(found, "plain", "fast", "mib")
    targets = ("6x the speed", "1/4") if (found["size"], found["batch"], found["codes"]) == FIRST_STAGE else ("", "")
    return [
        [
            f"first-stage step (generator and discriminators), {sizes}",
            against,
            targets[0],
            speed(found, "plain", "fast"),
        ],
        ["the same, peak memory of the process", "", targets[1], f"1/{memory:.1f}"],
    ]


def codebook(found: dict[str, Any]) -> list[list[str]]:
    batch, dim, *grid = found["latents"]
    what = f"codebook, one training forward, {batch} x {times(*grid)} vectors of {dim}, {found['codes']:,} codes"
    time, memory = (ratio(found, "EMAQuantizer", "EMACodebook", key) for key in ("seconds", "mib"))
    share = f"1/{memory:.0f}" if memory < 1000 else "under 1/1,000"  # a few MiB are as small as it can tell
    return [[what, "MONAI's `EMAQuantizer`", "", f"{time:.0f}x the speed, {share} of the additional memory"]]


def denoiser(found: dict[str, Any]) -> list[list[str]]:
    sizes = f"{found['batch']} x {times(*found['latent'])}, base width {found['base_channels']}"
    against = "plain eager form: Conv3d kernels, einsum attention"
    targets = ("2x the speed", "3x") if (found["latent"], found["base_channels"]) == DENOISER else ("", "")
    single, half = (speed(found, "plain", fast) for fast in ("fast", "fast-bfloat16"))
    memory = f"1/{ratio(found, 'plain', 'fast', 'mib'):.1f}"
    return [
        [f"denoiser, forward and backward, {sizes}", against, targets[0], single],
        ["the same, peak memory of the process", "", "", memory],
        ["the same under bfloat16 autocast", "the plain form in float32", targets[1], half],
    ]


def cached_latents(found: dict[str, Any]) -> list[list[str]]:
    return [
        [
            f"second-stage epoch on cached latents, {row['bundle']}, {times(*row['size'])}",
            "the same epoch, encoding every batch",
            "2x the speed" if row["bundle"] == "adni_ldm" else "",
            f"{row['ratio']:.1f}x",
        ]
        for row in found["rows"]
    ]


def sampling_adni_demo(found: dict[str, Any]) -> list[list[str]]:
    ancestral, *rows = found["samplers"]
    measures = [key for key in rows[0] if key.endswith(" against ddpm")]
    rows = [row for row in rows if all(m in row for m in measures)]  # one is measured for its distance alone
    good = [row for row in rows if all(row[m]["value"] <= NOT_WORSE * row[m]["error"] for m in measures)]
    if not good:
        raise ValueError(f"expected a sampler that is no worse than {ancestral['sampler']}, found none")
    best = min(good, key=lambda row: (row["calls"], row["time"]))
    against = f"{ancestral['calls']} ancestral steps; MMD and MS-SSIM diversity no worse (demo's generator)"
    reached = f"{ancestral['calls'] / best['calls']:.0f}x fewer ({best['sampler']}, {best['calls']} calls)"
    return [["sampling, calls of the denoiser", against, "10x fewer", reached]]


def start_up(found: dict[str, Any]) -> list[list[str]]:
    what = f"from the command to the first training step, embedded cohort of {found['subjects']} subjects"
    cold, warm = (found["medians"][key] for key in ("cold", "warm"))
    return [[what, "", "under 20 s", f"{cold:.0f} s, of which the cohort takes {max(0, cold - warm):.0f} s"]]


ROWS = (first_stage, denoiser, cached_latents, sampling_adni_demo, codebook, start_up)


def memory_table(found: dict[str, Any]) -> list[str]:
    columns = ["bundle", "stage", "volume", "latent", "batch", "peak GB"]
    lines = [[row[column] for column in columns] for row in found["rows"]]
    return markdown([*columns[:-1], "peak memory of a training step, GB"], lines)


def markdown(header: list[str], lines: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *lines)]


def machine_line(found: list[dict[str, Any]]) -> str:
    """Where it was measured.

    Raises:
        ValueError: there is no result, or the results are from different machines: ratios of one table belong to one.
    """
    facts = [one["machine"] for one in found]
    if not facts or any(one != facts[0] for one in facts):
        raise ValueError(f"expected results of one machine, got {facts}")
    one = facts[0]
    bfloat16 = f"bfloat16 by {', '.join(one['bfloat16'])}" if one["bfloat16"] else "no bfloat16 instructions"
    return (
        f"{one['processor']}, {one['cores']} cores, {one['memory_gb']} GB; {bfloat16}; no GPU; one thread (start-up: all "
        f"cores), float32 where nothing else is said; torch {one['versions']['torch']}, MONAI {one['versions']['monai']}."
    )


def table() -> str:
    """The whole section: ratios, machine, memory."""
    results = {make: read(make.__name__) for make in ROWS if (RESULTS / f"{make.__name__}.json").is_file()}
    lines = [row for make, found in results.items() for row in make(found)]
    parts = markdown(["what", "against", "target", "measured"], lines)
    with_machine = [found for make, found in results.items() if make is not sampling_adni_demo]  # counts, not times
    if (RESULTS / "memory.json").is_file():
        memory = read("memory")
        with_machine.append(memory)
        parts += ["", *memory_table(memory)]
    return "\n".join([f"Measured on: {machine_line(with_machine)}", "", *parts])


def in_readme(text: str) -> str:
    """The README with the present table.

    Raises:
        ValueError: the README lacks the marks.
    """
    before, begin, rest = text.partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not begin or not end:
        raise ValueError(f"expected {' ... '.join(MARKS)} in {README}")
    return f"{before}{begin}\n\n{table()}\n\n{end}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readme", action="store_true", help="write it into the README")
    args = parser.parse_args()
    print(table())
    if args.readme:
        text = in_readme(README.read_text())
        write_atomically(README, lambda temporary: temporary.write_text(text))


if __name__ == "__main__":
    main()
