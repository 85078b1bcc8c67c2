"""Counting optimiser steps where gradients are accumulated, and a learning-rate schedule that follows them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ignite.engine import Engine, Events
from monai.handlers import LrScheduleHandler

from medical_diffusion_components.engine_state import running

__all__ = ["StepLrSchedule", "accumulation_steps", "optimiser_step"]


def accumulation_steps(engine: Engine) -> int:
    """Iterations per optimiser step of this engine: MONAI's ``SupervisedTrainer`` has the number, others make one each."""
    return getattr(engine, "accumulation_steps", 1)


def optimiser_step(engine: Engine) -> int | None:
    """Number, from 1, of the optimiser step that the present iteration ended with; None if it made none.

    MONAI's trainer makes one every ``accumulation_steps`` iterations, and at the end of every epoch for what is left over.
    """
    per_step = accumulation_steps(engine)
    state = running(engine)
    length = state.epoch_length
    epochs, place = divmod(state.iteration - 1, length)
    if (place + 1) % per_step and place + 1 != length:
        return None
    return epochs * -(-length // per_step) + place // per_step + 1


class StepLrSchedule(LrScheduleHandler):
    """MONAI's ``LrScheduleHandler`` that steps the schedule with the optimiser, not with every batch.

    Args:
        lr_scheduler: torch schedule, counted in optimiser steps.
        step_transform: engine -> arguments of ``lr_scheduler.step``.
    """

    def __init__(self, lr_scheduler: Any, step_transform: Callable[[Engine], Any] = lambda _: ()) -> None:
        super().__init__(lr_scheduler, print_lr=False, epoch_level=False, step_transform=step_transform)

    def attach(self, engine: Engine) -> None:
        """Step after every iteration in which the optimiser did."""
        stepped = Events.ITERATION_COMPLETED(event_filter=lambda engine, _: optimiser_step(engine) is not None)
        engine.add_event_handler(stepped, self)
