"""PyTorch's threads, where they would only compete."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

__all__ = ["one_thread"]


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Within the block PyTorch computes with one thread.

    For work on small tensors, whose threads wait for one another longer than they save, and for work of which several
    pieces run at once.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
