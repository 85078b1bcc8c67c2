"""What only buys speed and memory, behind one switch to the plain form.

* ``norm_silu``: group norm, SiLU and the convolution behind them in one pass, whose backward pass keeps the input alone.
* ``attention_in_pieces``: attention along the depth that stays in a processor's cache.
* ``nearest_by_tree``: a k-d tree over the codes of a codebook.

Each has a plain form in PyTorch's own operators, written where the fast one is called. Tests compare the two. When a
result is in doubt, run the plain form::

    with fast.use(False):
        loss = network(volume).sum()
        loss.backward()

Weights, their names and random draws are the same in both forms; outputs and gradients agree up to rounding. TorchScript
cannot hold the hand-written backward passes and has no switch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

__all__ = ["in_use", "use"]

# One for the process, not for a thread: activation checkpointing calls the forward pass again from a thread of autograd's.
_state = {"in_use": True}


def in_use() -> bool:
    """Whether networks compute in their fast form, as they do unless :func:`use` says otherwise."""
    return _state["in_use"]


@contextlib.contextmanager
def use(fast: bool) -> Iterator[None]:
    """Within the block networks compute in their fast form, or with ``False`` in the plain one.

    For the whole process, so not for one of several threads. A backward pass belongs into the block of its forward pass.
    """
    before = _state["in_use"]
    _state["in_use"] = bool(fast)
    try:
        yield
    finally:
        _state["in_use"] = before
