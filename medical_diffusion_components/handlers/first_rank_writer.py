"""TensorBoard of several processes."""

from __future__ import annotations

import os
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from medical_diffusion_components.distributed import process_rank

__all__ = ["FirstRankWriter"]


class FirstRankWriter(SummaryWriter):
    """TensorBoard writer of which only the first process writes; curves of several in one folder would be mixed up.

    Args:
        log_dir: where the events go.
    """

    def __init__(self, log_dir: str | os.PathLike) -> None:
        self.silent = process_rank() > 0
        if not self.silent:
            super().__init__(str(log_dir))

    def add_scalar(self, *args: Any, **kwargs: Any) -> None:
        """As torch's, on the first process; nothing elsewhere."""
        if not self.silent:
            super().add_scalar(*args, **kwargs)

    def add_figure(self, *args: Any, **kwargs: Any) -> None:
        """As torch's, on the first process; nothing elsewhere."""
        if not self.silent:
            super().add_figure(*args, **kwargs)

    def flush(self) -> None:
        """As torch's, on the first process; nothing elsewhere."""
        if not self.silent:
            super().flush()

    def close(self) -> None:
        """As torch's, on the first process; nothing elsewhere."""
        if not self.silent:
            super().close()
