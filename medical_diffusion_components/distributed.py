"""Several processes at one global batch: whose row is whose, and random draws that do not depend on the sharing.

The global batch is dealt out like cards, as torch's ``DistributedSampler`` deals the cases: row k of rank r of n is at
position k n + r. All ranks draw from the same random state (see
:class:`~medical_diffusion_components.handlers.seeding.SeedIterations`) for the whole global batch and take their own
rows, so two processes with two cases each draw what one process with four would. Without ``torch.distributed`` there is
one process, of rank 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = [
    "draw_integers",
    "draw_normal",
    "gathered",
    "is_distributed",
    "join_processes",
    "process_rank",
    "share",
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


def share(items: Sequence[Any]) -> list[Any]:
    """This process's share of ``items``: every n-th, none twice, possibly none at all."""
    return list(items[process_rank() :: world_size()])


def gathered(item: Any) -> list[Any]:
    """``item`` of every process, in the order of ranks; waits for all of them."""
    everyone = [item] * world_size()
    if is_distributed():
        dist.all_gather_object(everyone, item)
    return everyone


def draw_integers(high: int, batch: int, device: torch.device | str = "cpu") -> Tensor:
    """One random integer in [0, high) for each row of this process's batch, (B,) int64.

    Drawn on the CPU, so alike for all devices and with no device to wait for.

    Args:
        high: a bound that the integers stay below.
        batch: B, alike on every process.
        device: where they are wanted.
    """
    return torch.randint(high, (batch * world_size(),))[process_rank() :: world_size()].to(device, non_blocking=True)


def draw_normal(like: Tensor) -> Tensor:
    """Standard normal noise in shape, dtype and device of ``like``, (B, ...); each row from a seed of its own."""
    generator = torch.Generator(like.device)
    rows = [
        torch.randn(like.shape[1:], generator=generator.manual_seed(seed), dtype=like.dtype, device=like.device)
        for seed in draw_integers(2**32, like.shape[0]).tolist()
    ]
    return torch.stack(rows)
