"""Stop at the first loss that is not a number."""

from __future__ import annotations

from collections import deque

import torch
from ignite.engine import Engine, Events

from medical_diffusion_components.engine_state import running

__all__ = ["NonFiniteLossError", "StopOnNonFinite"]


class NonFiniteLossError(RuntimeError):
    """Training met a loss that is infinite or not a number."""


class StopOnNonFinite:
    """Raise :class:`NonFiniteLossError`, naming iteration and cases, when a term of the loss is not finite.

    Raised before a checkpoint of that state is written, so the last good one stays. On a GPU the losses are fetched
    every ``check_every`` iterations only, since fetching waits for the device; iteration and cases named are those of
    the first bad batch nevertheless.

    Args:
        check_every: iterations between two looks; None is 1 on the CPU and 10 on a GPU.
    """

    def __init__(self, check_every: int | None = None) -> None:
        self.check_every = check_every
        self.pending: deque[tuple[int, list[str], dict]] = deque()

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.check)

    def __call__(self, engine: Engine) -> None:
        state = running(engine)
        cases = state.batch.get("case_id", []) if isinstance(state.batch, dict) else []
        # scalars only: a batch of volumes kept until the next look would fill a GPU
        losses = {k: v for k, v in state.output.items() if torch.is_tensor(v) and v.ndim == 0}
        self.pending.append((state.iteration, list(cases), losses))
        every = self.check_every or (10 if state.device.type == "cuda" else 1)
        if len(self.pending) >= every:
            self.check(engine)

    def check(self, engine: Engine) -> None:
        """Look at all losses not looked at yet."""
        while self.pending:
            iteration, cases, losses = self.pending.popleft()
            bad = [name for name, value in losses.items() if not torch.isfinite(value)]
            if bad:
                raise NonFiniteLossError(
                    f"not finite in iteration {iteration}: {', '.join(bad)}; cases of that batch: {cases}. "
                    "The last checkpoint is from before it: run again with --amp False to resume from there in float32. "
                    "Another learning rate or gradient clip makes another training: give it an --output_dir of its own."
                )
