"""Preparation by several processes, and what is left when one of them dies."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import BrokenExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest
from filelock import FileLock
from small_preparations import prepare, processes, raw_folder, stamps


def test_two_runs_cannot_write_to_one_folder(tmp_path, monkeypatch):
    raw_folder(tmp_path)
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / ".lock"):
        with pytest.raises(BlockingIOError, match="another process is preparing .*out: wait for it"):
            prepare(tmp_path)
        with monkeypatch.context() as worker, pytest.raises(BlockingIOError, match=r"out: wait .* A script .*__main__"):
            worker.setattr(multiprocessing.current_process(), "name", "SpawnProcess-1")
            prepare(tmp_path)
    prepare(tmp_path)
    with FileLock(tmp_path / "out" / ".lock", timeout=0):
        assert stamps(tmp_path), "the lock is free again when a run has ended"


class NoWorkers(ThreadPoolExecutor):
    """As a pool of processes that end before they begin."""

    begun = 0

    def submit(self, work, *args):
        NoWorkers.begun += 1
        return super().submit(self._die)

    def _die(self):
        raise BrokenExecutor("a process in the pool was terminated abruptly")


def test_where_no_process_can_start_the_run_ends_and_the_cases_are_not_refused(tmp_path):
    raw_folder(tmp_path)
    with pytest.raises(ChildProcessError, match="no worker process can start"):
        prepare(tmp_path, lambda: NoWorkers(1), in_flight=2)
    assert NoWorkers.begun == 3, "two cases in flight, and one attempt to start a process"
    assert not (tmp_path / "out" / "report.json").exists()
    assert set(prepare(tmp_path).counts) and stamps(tmp_path), "the folder is free"


UNGUARDED = """
from pathlib import Path
from small_preparations import prepare, processes
from medical_diffusion_components.preparation.preparation import run_or_exit

class Made:
    def run(self):
        return prepare(Path(__file__).parent, processes)

run_or_exit(Made)
"""


@pytest.mark.slow
def test_a_script_without_a_guard_ends_with_the_line_that_it_lacks(tmp_path):
    raw_folder(tmp_path)
    (tmp_path / "mine.py").write_text(UNGUARDED)
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    command, environment = [sys.executable, tmp_path / "mine.py"], {**os.environ, "PYTHONPATH": path}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    last = ended.stderr.strip().splitlines()[-1]
    assert ended.returncode == 1 and last.startswith("prepare: no worker process can start")
    assert 'below the line `if __name__ == "__main__":`' in last


@pytest.mark.slow
def test_a_process_that_dies_takes_only_its_own_case_with_it(tmp_path):
    raw_folder(tmp_path, ("a", "b", "c", "crash", "d", "e", "f", "raise"))
    report = prepare(tmp_path, processes, in_flight=4)
    assert {r.case_id: r.reason for r in report.results if r.status != "made"} == {
        "crash": "crashed",
        "raise": "failed",
    }
    assert report.counts["made"] == 6
    assert 100 < report.peak_mib < 3000
    assert set(report.shares) == {"reading", "resampling", "writing", "other"}
    assert sum(report.shares.values()) == pytest.approx(1)


def run_slowly(folder):
    """What the test below kills."""
    prepare(Path(folder), processes)


@pytest.mark.slow
def test_killed_with_kill_9_it_resumes_where_it_stopped_and_leaves_no_process_behind(tmp_path):
    raw_folder(tmp_path, [f"slow{n}" for n in range(8)])
    code = f"import test_preparation_processes as t; t.run_slowly({str(tmp_path)!r})"
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    run = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, start_new_session=True)
    notes = tmp_path / "out" / "cases"
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and (not notes.is_dir() or len(list(notes.glob("[!.]*.json"))) < 2):
        time.sleep(0.05)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    while time.monotonic() < deadline and _group(run.pid):
        time.sleep(0.1)
    assert not _group(run.pid)
    finished = len(list(notes.glob("[!.]*.json")))
    half = tmp_path / "out" / "images" / ".medical_diffusion_part_half"  # as write_atomically leaves it
    half.mkdir()
    (half / "slow8.nii.gz").write_bytes(b"x")
    report = prepare(tmp_path)
    assert not half.exists()
    assert 2 <= finished < 8 and report.counts["skipped"] == finished and report.counts["made"] == 8 - finished
    assert sorted(stamps(tmp_path)) == sorted(f"slow{n}.nii.gz" for n in range(8))


def _group(group):
    """Living processes of a process group."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(stat.parent.name)
    return found


@pytest.mark.slow
def test_a_dask_cluster_of_two_workers_gives_the_same_bytes(tmp_path):
    distributed = pytest.importorskip("distributed")
    raw_folder(tmp_path, ("a", "b", "c", "d", "raise"))
    here = prepare(tmp_path)
    (tmp_path / "out").rename(tmp_path / "threads")
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
        there = prepare(tmp_path, client.get_executor)
    assert {r.case_id: (r.status, r.outputs) for r in there.results} == {
        r.case_id: (r.status, r.outputs) for r in here.results
    }
