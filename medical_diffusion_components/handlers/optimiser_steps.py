"""Counting optimiser steps where gradients are accumulated, and a learning-rate schedule that follows them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ignite.engine import Engine, Events
from monai.handlers import LrScheduleHandler

from medical_diffusion_components.engine_state import running

__all__ = ["StepLrSchedule", "optimiser_step"]


def optimiser_step(engine: Engine, accumulation_steps: int) -> int | None:
    """Number, from 1, of the optimiser step that the present iteration ended with; None if it made none.

    MONAI's trainer makes one every ``accumulation_steps`` iterations, and at the end of every epoch for what is left over.
    """
    state = running(engine)
    length = state.epoch_length
    epochs, place = divmod(state.iteration - 1, length)
    if (place + 1) % accumulation_steps and place + 1 != length:
        return None
    return epochs * -(-length // accumulation_steps) + place // accumulation_steps + 1


class StepLrSchedule(LrScheduleHandler):
    """MONAI's ``LrScheduleHandler`` that steps the schedule with the optimiser, not with every batch.

    Args:
        lr_scheduler: torch schedule, counted in optimiser steps.
        accumulation_steps: iterations per optimiser step.
        step_transform: engine -> arguments of ``lr_scheduler.step``.
    """

    def __init__(
        self, lr_scheduler: Any, accumulation_steps: int = 1, step_transform: Callable[[Engine], Any] = lambda _: ()
    ) -> None:
        super().__init__(lr_scheduler, print_lr=False, epoch_level=False, step_transform=step_transform)
        self.accumulation_steps = accumulation_steps

    def attach(self, engine: Engine) -> None:
        """Step after every iteration in which the optimiser did."""

        def stepped(engine: Engine, _: int) -> bool:
            return optimiser_step(engine, self.accumulation_steps) is not None

        engine.add_event_handler(Events.ITERATION_COMPLETED(event_filter=stepped), self)
