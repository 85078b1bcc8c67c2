"""Seconds from the command to the end of the first training step, on the embedded cohort.

    python benchmarks/start_up.py [--bundle adni_ldm] [--runs 3] [--subjects N] [--save]

Runs the README's training command with `demo.yaml` in a terminal of its own (a pseudo-terminal), waits until its progress
bar has counted a batch, and stops it. "cold" has nothing on disk and writes the cohort first; "warm" finds the cohort.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import pty
import re
import select
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path

from bundle_step import BUNDLES, LDM_BUNDLES
from measuring import add_save, save_result
from monai.bundle import ConfigParser

COUNTED = re.compile(r"first stage:.*(?<!\d)[1-9]\d*/\d+ ")


def first_step(bundle: str, options: list[str], limit: float = 600.0) -> float:
    """Seconds until the progress bar shows the first batch as done.

    Args:
        bundle: its name.
        options: of the command, such as where it writes.
        limit: s.

    Raises:
        RuntimeError: the command ended before, or did not get there within ``limit`` seconds.
    """
    configs = BUNDLES / bundle / "configs"
    files = f"['{configs / 'train.yaml'}','{configs / 'demo.yaml'}']"
    command = [sys.executable, "-m", "monai.bundle", "run", "training", "--config_file", files, *options]
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))  # without a size there are no bars
    start, said = time.perf_counter(), ""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}  # all cores
    process = subprocess.Popen(command, stdout=follower, stderr=follower, start_new_session=True, env=environment)
    os.close(follower)
    try:
        while not COUNTED.search(said):
            if not select.select([leader], [], [], max(0.0, limit - time.perf_counter() + start))[0]:
                raise RuntimeError(f"no training step within {limit:.0f} s:\n{said[-2000:]}")
            try:
                said += os.read(leader, 4096).decode(errors="replace")
            except OSError as error:  # the other end was closed
                raise RuntimeError(f"the command ended before its first step:\n{said[-2000:]}") from error
        return time.perf_counter() - start
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(leader)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", choices=LDM_BUNDLES, default="adni_ldm")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--subjects", type=int, help="of the cohort (default: as demo.yaml says)")
    add_save(parser)
    args = parser.parse_args()
    demo = ConfigParser.load_config_file(BUNDLES / args.bundle / "configs" / "demo.yaml")
    subjects = args.subjects or demo["num_embedded_subjects"]

    seconds: dict[str, list[float]] = {"cold": [], "warm": []}
    for run in range(args.runs):
        with tempfile.TemporaryDirectory() as output:
            options = ["--output_dir", output, "--models_dir", f"{output}/models"]
            options += ["--num_embedded_subjects", str(subjects)]
            for name, found in seconds.items():
                found.append(first_step(args.bundle, options))
                print(f"run {run + 1} {name}: {found[-1]:.1f} s", flush=True)
                for path in Path(output).glob("*/checkpoints/*"):  # the next one begins anew
                    path.unlink()
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    print(", ".join(f"median {name}: {median:.1f} s" for name, median in medians.items()))
    if args.save:
        save_result("start_up", {"bundle": args.bundle, "runs": args.runs, "subjects": subjects, "medians": medians})


if __name__ == "__main__":
    main()
