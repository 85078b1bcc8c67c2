"""Several processes: whose share is whose, and how they end. As a script, started by torchrun, this is one of them."""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from medical_diffusion_components import distributed
from medical_diffusion_components.distributed import gathered, join_processes, leave_processes, process_rank, share

ROUNDS = 40


def test_shares_are_disjoint_and_complete_and_may_be_empty(as_rank) -> None:
    shares = []
    for rank in range(4):
        as_rank(rank, 4)
        shares.append(share("abcdefgh"[:3]))
    assert shares == [["a"], ["b"], ["c"], []]


def test_a_process_that_was_started_alone_stays_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    join_processes()
    assert not dist.is_initialized() and share("ab") == ["a", "b"] and gathered(5) == [5]


def two_processes(what: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """They are not forked: how Python ends is what this is about."""
    from warm_processes import torchrun  # what it imports would take each of the processes seconds

    variables = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return torchrun(2, __file__, what, str(folder), env=variables, forked=False)


@pytest.mark.slow
def test_who_leaves_has_let_go_of_every_tensor(tmp_path: Path) -> None:
    # what has not is an abort: gloo's thread asks for Python's lock when there is no Python any more
    done = two_processes("leave", tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    late = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert late == [[], []], "rounds in which a tensor was still held"


def test_who_fails_because_another_did_fails_later_even_within_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed.time, "time", lambda: 100.9)
    first, second = (tmp_path / rank / "error.json" for rank in "10")
    for file in (first, second):
        file.parent.mkdir()
    assert distributed._time_of_failure(first) == 100
    first.write_text('{"message": "the cause", "timestamp": 100}')
    assert distributed._time_of_failure(second) == 101


@pytest.mark.slow
def test_an_error_in_one_process_ends_all_with_its_cause(tmp_path: Path) -> None:
    done = two_processes("fail", tmp_path)
    assert done.returncode == 1
    assert "ValueError: the volume is flat" in "\n".join(done.stderr.splitlines()[-6:])
    assert "exitcode  : 1 (pid" in done.stderr and "terminate called" not in done.stderr
    assert "loader ended" in (tmp_path / "log").read_text(), "logs are written"


def leave_often(folder: Path) -> None:
    """Note the rounds after which one of gloo's threads still holds the tensor of the last collective."""
    end, dist.destroy_process_group = dist.destroy_process_group, lambda: None
    sys.setswitchinterval(100)  # no thread gets Python's lock unless this one waits for something
    late = []
    for number in range(ROUNDS):
        tensor = torch.ones(3)
        let_go: list[int] = []
        weakref.finalize(tensor, let_go.append, number).atexit = False
        work = dist.all_reduce(tensor, async_op=True)
        del tensor, work
        leave_processes()
        if not let_go:
            late.append(number)
    (folder / f"{process_rank()}.json").write_text(json.dumps(late))
    dist.destroy_process_group = end
    leave_processes()


def fail_in_one(folder: Path) -> None:
    """The second process fails within a collective, the first waits for it for ever."""
    from medical_diffusion_components.workflow import stages  # with MONAI: the other pair of processes does without

    sys.excepthook = stages._traceback_with_cause
    gathered(process_rank())
    if process_rank() == 1:
        handler = logging.handlers.MemoryHandler(99, target=logging.FileHandler(folder / "log"))
        logging.getLogger("test").addHandler(handler)
        logging.getLogger("test").warning("loader ended")
        pending = dist.all_reduce(torch.ones(3), async_op=True)
        raise ValueError(f"the volume\nis flat{'' if pending else '?'}")
    gathered(process_rank())
    gathered(process_rank())


if __name__ == "__main__":
    distributed.join_processes()
    {"leave": leave_often, "fail": fail_in_one}[sys.argv[1]](Path(sys.argv[2]))
