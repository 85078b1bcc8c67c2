"""Several processes at one global batch: whose row is whose.

The global batch is dealt out like cards, as torch's ``DistributedSampler`` deals the cases: row k of rank r of n is at
position k n + r. All ranks draw from the same random state (see
:class:`~medical_diffusion_components.handlers.seeding.SeedIterations`) for the whole global batch and take their own
rows, so two processes with two cases each draw what one process with four would. Without ``torch.distributed`` there is
one process, of rank 0.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

__all__ = [
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
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        if torch.cuda.is_available():
            torch.cuda.set_device(dist.get_node_local_rank())


def leave_processes() -> None:
    """Take leave of the processes that :func:`join_processes` found; nothing for a process that is alone.

    All wait for each other first. gloo's threads then have let go of the tensors they have exchanged: for that they need
    Python's lock, which the end of the group would hold while it waits for them.
    """
    if is_distributed():
        wait_for_all()
        dist.destroy_process_group()


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
