"""The batch script of docs/slurm.md, run by bash with stand-ins for SLURM's commands and for ``torchrun``."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bundle_folders import REPOSITORY, config_files, read
from torch.distributed.run import get_args_parser

DOCUMENT = (REPOSITORY / "docs" / "slurm.md").read_text()
SCRIPT = re.search(r"```bash\n(#!/bin/bash.*?)```", DOCUMENT, re.DOTALL).group(1)
RECORD = """#!{python}
import json, os, sys, time
with open("{log}", "a") as file:
    file.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]) + "\\n")
"""
STAND_INS = {
    "srun": "os.execvp(sys.argv[2], sys.argv[2:])\n",
    "scontrol": 'print("node-a\\nnode-b" if sys.argv[1] == "show" else "")\n',
    "torchrun": 'time.sleep(float(os.environ["TAKES"]))\n',
}


class Cluster:
    """A folder with the script and what it needs, and the commands that it gave."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "log"
        (folder / ".venv" / "bin").mkdir(parents=True)
        (folder / "bundles").symlink_to(REPOSITORY / "bundles")
        (folder / "train.sbatch").write_text(SCRIPT)
        for name, does in STAND_INS.items():
            program = folder / ".venv" / "bin" / name
            program.write_text(RECORD.format(python=sys.executable, log=self.log) + does)
            program.chmod(0o755)

    def start(self, takes: float) -> subprocess.Popen:
        variables = {
            "SLURM_SUBMIT_DIR": self.folder,
            "SLURM_JOB_ID": 7,
            "SLURM_JOB_NODELIST": "node-[a-b]",
            "SLURM_NNODES": 2,
            "SLURM_GPUS_ON_NODE": 4,
            "SLURM_CPUS_PER_TASK": 32,
            "TAKES": takes,
        }
        environment = os.environ | {name: str(value) for name, value in variables.items()}
        return subprocess.Popen(["bash", "train.sbatch"], cwd=self.folder, env=environment, start_new_session=True)

    def commands(self, name: str) -> list[list[str]]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [command[1:] for command in map(json.loads, lines) if command[0] == name]


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


def test_every_command_is_one_that_torchrun_and_the_bundle_accept(cluster: Cluster) -> None:
    assert cluster.start(takes=0).wait(60) == 0
    launched = cluster.commands("torchrun")
    assert len(launched) == len(cluster.commands("srun")) == 2
    for arguments, id in zip(launched, ("training", "inference")):
        parsed = get_args_parser().parse_args(arguments)
        assert (parsed.nnodes, parsed.nproc_per_node) == ("2", "4")
        assert (parsed.rdzv_backend, parsed.rdzv_endpoint, parsed.rdzv_id) == ("c10d", "node-a:29500", "7.0")
        assert parsed.module and parsed.training_script == "monai.bundle"
        run, asked, *options = parsed.training_script_args
        given = dict(zip(options[::2], options[1::2], strict=True))
        files = [Path(file) for file in re.findall(r"'([^']+)'", given.pop("--config_file"))]
        assert (run, asked) == ("run", id) and id in read(files[0])
        known = {key for file in files for key in read(file)}
        assert {option.removeprefix("--") for option in given} <= known
    assert files[0].resolve() in config_files(files[0].resolve().parents[1])


def test_shortly_before_its_time_is_up_the_job_is_queued_again_and_does_not_go_on_to_sample(cluster: Cluster) -> None:
    job = cluster.start(takes=60)
    try:
        deadline = time.monotonic() + 60
        while not cluster.commands("torchrun"):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        job.send_signal(signal.SIGUSR1)  # to the script alone, as B: in --signal says
        assert job.wait(30) != 0
        assert ["requeue", "7"] in cluster.commands("scontrol")
        assert len(cluster.commands("torchrun")) == 1
    finally:
        os.killpg(job.pid, signal.SIGKILL)


def test_the_job_asks_for_the_signal_and_may_be_queued_again() -> None:
    asked = re.findall(r"^#SBATCH (--\S+)", SCRIPT, re.MULTILINE)
    assert "--signal=B:USR1@300" in asked and "--requeue" in asked and "--open-mode=append" in asked
    assert "--ntasks-per-node=1" in asked, "torchrun itself starts the processes of a node"


def test_every_path_and_knob_that_the_document_names_exists() -> None:
    known = {key for file in config_files(REPOSITORY / "bundles" / "adni_ldm") for key in read(file)}
    named = set(re.findall(r"`(?:--)?(\w+_\w+)(?: \d+)?`", DOCUMENT)) - {"NCCL_SOCKET_IFNAME"}
    assert named and named <= known
