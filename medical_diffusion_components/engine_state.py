"""What is in the state of a running engine, with its types.

ignite declares the state of an engine for any use: every entry may be missing, the output is a number. MONAI's workflows
always set them, and add some of their own. Handlers read the state through :func:`running`, so that a misspelt entry is
found by a type checker.
"""

from __future__ import annotations

from typing import Any, Protocol, cast

import torch
from ignite.engine import Engine

__all__ = ["RunningState", "running"]


class RunningState(Protocol):
    """The state of one of MONAI's engines while it runs; of an evaluator, also its best metric.

    ``iteration`` and ``epoch`` count from 1, over the whole training; ``epoch_length`` is in iterations. ``batch`` is what
    ``dataloader`` gave and ``output`` what the engine made of it. ``metric_details`` holds, by a metric's name, the values
    of all cases.
    """

    rank: int
    device: torch.device
    iteration: int
    epoch: int
    max_epochs: int
    epoch_length: int
    dataloader: Any
    batch: Any
    output: Any
    metrics: dict[str, Any]
    metric_details: dict[str, Any]
    best_metric: float
    best_metric_epoch: int


def running(engine: Engine) -> RunningState:
    """The state of ``engine``."""
    return cast(RunningState, engine.state)
