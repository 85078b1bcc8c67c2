"""What the benchmarks share: memory of this process, measurements that take turns, results with their machine."""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medical_diffusion_components.files import versions, write_atomically, write_json

RESULTS = Path(__file__).parent / "results"
# One thread, since two do not share a busy machine evenly; malloc keeps its pages, as in the Makefile.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": "4000000000",
    "MALLOC_TRIM_THRESHOLD_": "8000000000",
}


class Laps:
    """Time since the lap before, elapsed (``seconds``) and of the processor in user mode (``user``).

    The difference is the system's: large tensors are fresh pages, and on some machines getting them takes longer than
    the arithmetic.
    """

    def __init__(self) -> None:
        self.laps: list[dict[str, float]] = []
        self._last = self._now()

    def _now(self) -> dict[str, float]:
        return {"seconds": time.perf_counter(), "user": resource.getrusage(resource.RUSAGE_SELF).ru_utime}

    def lap(self) -> None:
        now = self._now()
        self.laps.append({key: now[key] - self._last[key] for key in now})
        self._last = now

    def medians(self, first: int) -> dict[str, float]:
        """Of the laps from number ``first`` on, which counts from 0."""
        return {key: statistics.median(lap[key] for lap in self.laps[first:]) for key in ("seconds", "user")}


def memory_mib(key: str) -> float:
    """Resident set of this process, now (``VmRSS``) or at its peak (``VmHWM``); Linux."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {key}")


def in_own_process(script: str, arguments: list[str]) -> dict[str, Any]:
    """Run a script in ``ENVIRONMENT`` and return the JSON in the last line that it prints.

    Raises:
        RuntimeError: the script failed; with the end of what it said.
    """
    command = [sys.executable, script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | ENVIRONMENT)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def take_turns(script: str, arguments: list[str], variants: tuple[str, ...], runs: int) -> dict[str, dict[str, float]]:
    """Measure each variant ``runs`` times, in turn, so that a shared machine disturbs all equally; print and give medians.

    Args:
        script: prints ``{"seconds": ..., "mib": ...}``, maybe with ``user``, when called with ``--variant``.
        arguments: further ones for it.
        variants: what to measure.
        runs: measurements of each.
    """
    results: dict[str, list[dict[str, float]]] = {variant: [] for variant in variants}
    for run in range(runs):
        for variant in variants:
            result = in_own_process(script, [*arguments, "--variant", variant])
            results[variant].append(result)
            print(f"run {run + 1}   {variant:15}{in_words(result)}", flush=True)
    medians = {v: {key: statistics.median(r[key] for r in results[v]) for key in results[v][0]} for v in variants}
    for variant, median in medians.items():
        print(f"median  {variant:15}{in_words(median)}")
    return medians


def in_words(result: dict[str, float]) -> str:
    user = f", {result['user']:.3f} s of it in user mode" if "user" in result else ""
    return f"{result['seconds']:9.3f} s{user}, {result['mib']:.1f} MiB"


def compare(
    script: str,
    parser: argparse.ArgumentParser,
    variants: tuple[str, ...],
    baseline: str,
    measure: Callable[[argparse.Namespace], dict[str, float]],
) -> None:
    """The ``main`` of a script that measures variants of one thing against a baseline.

    Args:
        script: its ``__file__``; the result gets its name.
        parser: with the sizes as options; ``--runs``, ``--save`` and ``--variant`` are added.
        variants: the names that ``--variant`` knows.
        baseline: the one that ratios are given against.
        measure: options -> ``{"seconds": ..., "mib": ...}`` of ``options.variant``, in this process.
    """
    parser.add_argument("--runs", type=int, default=3, help="measurements of each variant")
    parser.add_argument("--variant", choices=variants, help=argparse.SUPPRESS)
    add_save(parser)
    options = parser.parse_args()
    if options.variant:
        print(json.dumps(measure(options)))
        return
    medians = take_turns(script, sys.argv[1:], variants, options.runs)
    for variant in variants:
        if variant != baseline:
            ratios = {key: medians[baseline][key] / medians[variant][key] for key in medians[variant]}
            print(f"{baseline} / {variant}: " + ", ".join(f"{key} {ratio:.2f}" for key, ratio in ratios.items()))
    if options.save:
        sizes = {name: value for name, value in vars(options).items() if name not in ("save", "variant")}
        save_result(Path(script).stem, {**sizes, "medians": medians})


def machine() -> dict[str, Any]:
    """Processor, its bfloat16 instructions, cores, memory, versions."""
    import torch

    able = torch.cpu.get_capabilities()
    info = Path("/proc/cpuinfo").read_text()
    names = [line.split(":", 1)[1].strip() for line in info.splitlines() if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "bfloat16": [name for name in ("amx_bf16", "avx512_bf16") if able.get(name)],
        "versions": versions(),
    }


def add_save(parser: argparse.ArgumentParser) -> None:
    """Give a script the option ``--save``."""
    parser.add_argument(
        "--save", action="store_true", help="write results/, from which `table.py` makes the README's table"
    )


def save_result(name: str, result: dict[str, Any]) -> None:
    """Write ``results/NAME.json``, from which `table.py` makes the README's table."""
    path = write_json(RESULTS / f"{name}.json", {**result, "machine": machine()}, indent=1)
    print(f"written: {path}")


def save_rows(name: str, rows: list[dict[str, Any]], keys: tuple[str, ...]) -> None:
    """Add rows to ``results/NAME.json``; those of the same ``keys`` are replaced, those of another machine dropped."""
    path = RESULTS / f"{name}.json"
    saved = json.loads(path.read_text()) if path.is_file() else {"rows": [], "machine": None}
    kept = saved["rows"] if saved["machine"] == machine() else []
    new = {tuple(row[key] for key in keys): row for row in (*kept, *rows)}
    save_result(name, {"rows": [new[key] for key in sorted(new)]})


def called(arguments: Sequence[str]) -> None:
    """Run Python with these arguments, its output visible.

    Raises:
        SystemExit: it failed; what is done stays, and the same command resumes.
    """
    paths = os.pathsep.join([str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable, *arguments], env=os.environ | ENVIRONMENT | {"PYTHONPATH": paths})
    if done.returncode:
        raise SystemExit(f"python {' '.join(arguments)[:300]} ... ended with {done.returncode}")


def call_bundle(files: Sequence[Path], settings: Mapping[str, Any]) -> None:
    """Run a bundle's configurations with these settings, id -> value; fails as :func:`called`."""
    arguments = [part for id, value in settings.items() for part in (f"--{id}", as_option(value))]
    called(["-m", "monai.bundle", "run", "--config_file", str([str(file) for file in files]), *arguments])


def comparison_options(description: str | None) -> argparse.ArgumentParser:
    """What scripts that train and judge generators are told: where, how often, on what, and what is left out."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="of everything that is made")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--subjects", type=int, default=160, help="of the cohort; about four fifths are trained on")
    parser.add_argument("--more_held_out", type=int, default=45, help="further subjects to compare with")
    parser.add_argument("--volumes", type=int, default=45, help="samples that are judged together")
    parser.add_argument("--finished_only", action="store_true", help="train nothing more, judge what is finished")
    parser.add_argument("--save", action="store_true", help="copies of the result in benchmarks/results")
    return parser


def write_comparison(
    folder: Path, name: str, result: Mapping[str, Any], table: str, draw: Callable[[Path], None], save: bool
) -> None:
    """``NAME.json``, ``.md`` and ``.png`` into a folder, copies of result and picture into ``results``, and the table."""
    write_json(folder / f"{name}.json", result, indent=1)
    write_atomically(folder / f"{name}.md", lambda temporary: temporary.write_text(table))
    draw(folder / f"{name}.png")
    for suffix in ("json", "png") if save else ():
        shutil.copyfile(folder / f"{name}.{suffix}", RESULTS / f"{name}.{suffix}")
    print(table)


def as_option(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def read_knob(text: str) -> tuple[str, Any]:
    id, _, value = text.partition("=")
    return id, json.loads(value)
