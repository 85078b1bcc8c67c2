"""TensorBoard of several processes."""

from __future__ import annotations

import os
from collections.abc import Callable

from torch.utils.tensorboard import SummaryWriter

from medical_diffusion_components.distributed import process_rank

__all__ = ["SilentWriter", "first_rank_writer"]


class SilentWriter:
    """Takes every call that a ``SummaryWriter`` takes, and writes nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        if not callable(getattr(SummaryWriter, name, None)):
            raise AttributeError(f"SummaryWriter has no method {name!r}")
        return lambda *_, **__: None


def first_rank_writer(log_dir: str | os.PathLike) -> SummaryWriter | SilentWriter:
    """A TensorBoard writer on the first process and a silent one elsewhere: curves of several in a folder would mix.

    Args:
        log_dir: where the events go.
    """
    return SummaryWriter(str(log_dir)) if process_rank() == 0 else SilentWriter()
