"""A few cases prepared for trial, to say how long all will take, and how much memory and room."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from medical_diffusion_components.preflight.headers import ScanFacts
from medical_diffusion_components.preparation.case import CaseResult, peak_memory, prepare_case
from medical_diffusion_components.preparation.inventory import RawCase

__all__ = ["Estimate", "fresh_process_mib", "rehearse"]

_MOST = 8  # cases: more of them say little more


class Estimate(NamedTuple):
    """What a sample says of all cases.

    Attributes:
        results: of the cases that were prepared for trial.
        seconds: of one worker for all cases.
        case_mib: room that the prepared volumes of a case take.
        held_mib: memory that this process held before the first case: a notebook holds more than a worker will.
        growth_mib: what the largest case needs beside it.

    They are None where no case of the sample could be prepared, the last two also where the system does not tell.
    """

    results: tuple[CaseResult, ...]
    seconds: float | None
    case_mib: float | None
    held_mib: float | None
    growth_mib: float | None


def rehearse(
    cases: Sequence[RawCase],
    facts: Mapping[str, ScanFacts],
    steps: Sequence[Callable],
    raw_dir: Path,
    seconds: float,
) -> Estimate | None:
    """Prepare up to 8 cases of the middle size into a temporary folder, until the time is used up; at least one.

    Time and memory are taken to grow with the number of voxels of the raw scan, as those of reading and resampling do.

    Args:
        cases: those that their headers do not refuse.
        facts: case id -> what the header says.
        steps: of `prepare`.
        raw_dir: left out of messages.
        seconds: when to stop.

    Returns:
        None without cases.
    """
    if not cases:
        return None
    ordered = sorted(cases, key=lambda case: (facts[case.case_id].voxels, case.case_id))
    middle_first = sorted(range(len(ordered)), key=lambda place: abs(place - len(ordered) // 2))
    results: list[CaseResult] = []
    base, growth = None, 0.0  # MiB; MiB a voxel
    with tempfile.TemporaryDirectory(prefix="check_") as folder:
        started = time.monotonic()
        for case in (ordered[place] for place in middle_first[:_MOST]):
            if results and time.monotonic() - started > seconds:
                break
            watched = _forget_peak()
            before = peak_memory()
            base = before if watched and base is None else base
            results.append(prepare_case(case, steps, str(raw_dir), folder, ""))
            growth = max(growth, (peak_memory() - before) / max(facts[case.case_id].voxels, 1))
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    made = [result for result in results if result.status == "made"]
    if not made:
        return Estimate(tuple(results), None, None, None, None)
    spent = sum(sum(result.seconds.values()) for result in made)
    share = sum(facts[case.case_id].voxels for case in ordered) / sum(facts[result.case_id].voxels for result in made)
    return Estimate(
        tuple(results),
        spent * share,
        size / 2**20 / len(made),
        base,
        None if base is None else growth * facts[ordered[-1].case_id].voxels,
    )


@functools.cache
def fresh_process_mib() -> float:
    """What a process holds that has imported what `prepare` needs and read no case, in MiB; takes seconds to find out."""
    module = peak_memory.__module__
    code = f"import sys; sys.path[:] = {sys.path!r}; import {module} as case; print(case.peak_memory())"
    ended = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True)
    return float(ended.stdout.split()[-1])


def _forget_peak() -> bool:
    """Let the system count the highest memory use of this process from now on; Linux."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        return False
    return os.path.exists("/proc/self/status")
