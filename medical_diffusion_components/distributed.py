"""Several processes at one global batch: whose row is whose.

The global batch is dealt out like cards, as torch's ``DistributedSampler`` deals the cases: row k of rank r of n is at
position k n + r. All ranks draw from the same random state (see
:class:`~medical_diffusion_components.handlers.seeding.SeedIterations`) for the whole global batch and take their own
rows, so two processes with two cases each draw what one process with four would. Without ``torch.distributed`` there is
one process, of rank 0.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from medical_diffusion_components.files import write_json

__all__ = [
    "end_by_error",
    "gathered",
    "is_distributed",
    "join_processes",
    "leave_processes",
    "own_device",
    "process_rank",
    "share",
    "wait_for_all",
    "world_size",
]

GLOO = "gloo_in_turn"  # gloo with one thread, which finishes with one collective before it begins the next


def is_distributed() -> bool:
    """Whether there are processes to talk to."""
    return dist.is_available() and dist.is_initialized()


def process_rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if is_distributed() else 1


def join_processes() -> None:
    """Find the other processes if ``torchrun`` has started several; a process that was started alone stays alone."""
    if dist.is_available() and dist.is_torchelastic_launched() and not dist.is_initialized():
        if GLOO not in dist.Backend.backend_list:
            dist.Backend.register_backend(GLOO, _gloo_in_turn, devices=["cpu"])
        dist.init_process_group("nccl" if torch.cuda.is_available() else GLOO)
        if torch.cuda.is_available():
            torch.cuda.set_device(dist.get_node_local_rank())


def _gloo_in_turn(store: dist.Store, rank: int, size: int, timeout: timedelta) -> Any:
    """gloo with one thread in place of two: it has let go of one collective's tensors before it begins the next."""
    gloo: Any = dist.ProcessGroupGloo  # torch's stubs and its class give the options different names
    options = gloo._Options()
    options._devices = [gloo.create_default_device()]
    options._timeout = timeout
    options._threads = 1
    return gloo(store, rank, size, options)


def leave_processes() -> None:
    """Take leave of the processes that :func:`join_processes` found; nothing for a process that is alone.

    All wait for each other first. To let go of a tensor that Python knows of, gloo's thread takes Python's lock, and that
    after it has woken those who wait for the collective. A thread that takes the lock while Python shuts down aborts the
    process, and whatever refers to the group, as ``DistributedDataParallel`` does, keeps its thread beyond the group's end.
    A barrier is no remedy, since it refers to what was under way when it was called. So the last collective is a
    broadcast of a tensor that torch makes beneath Python: once it has begun, the only thread has let go of all others.
    """
    if is_distributed():
        wait_for_all()
        if dist.get_backend() == GLOO:
            dist._broadcast_coalesced(
                dist.distributed_c10d._get_default_group(), [torch.zeros(1), torch.zeros(1)], 2**10, 0
            )
        dist.destroy_process_group()


def end_by_error(cause: str) -> None:
    """End a process of several with status 1; nothing for a process that is alone.

    Python must not shut down here: gloo's thread may be within a collective that the others never enter, for which the
    end of the group would wait, or about to take Python's lock (see :func:`leave_processes`). Waiting for it is no way out,
    since it may wait for a process that is dead. So loaders' processes are ended, all that was written is flushed, and the
    system ends the process.

    Args:
        cause: for the last lines of ``torchrun``, which otherwise name no cause.
    """
    if not is_distributed():
        return
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file:
        write_json(file, {"message": cause, "timestamp": _time_of_failure(Path(file))})
    for child in multiprocessing.active_children():
        child.terminate()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _time_of_failure(file: Path) -> int:
    """Now in whole seconds, as ``torchrun`` reads it, but later than the failures of this node's other processes.

    ``torchrun`` takes the earliest for the cause, and the lowest rank of those in one second: a process that fails because
    another has left it would come before that one. Each process's file lies in a folder of its own, beside the others.
    """
    others = [other for other in file.parent.parent.glob(f"*/{file.name}") if other != file]
    return max([int(time.time()), *(int(json.loads(other.read_text())["timestamp"]) + 1 for other in others)])


def wait_for_all() -> None:
    """Return once every process has come here; a process that is alone returns at once."""
    if is_distributed():
        dist.barrier()


def share(items: Sequence[Any]) -> list[Any]:
    """This process's share of ``items``: every n-th, none twice, possibly none at all."""
    return list(items[process_rank() :: world_size()])


def gathered(item: Any) -> list[Any]:
    """``item`` of every process, in the order of ranks; waits for all of them."""
    everyone = [item] * world_size()
    if is_distributed():
        dist.all_gather_object(everyone, item)
    return everyone


def own_device() -> torch.device:
    """The GPU of this process, counted by ``torchrun`` or the first one; without GPUs the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
