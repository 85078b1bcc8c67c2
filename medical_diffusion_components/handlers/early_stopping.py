"""Stop a training that has converged, or for another reason that a validation finds."""

from __future__ import annotations

import logging
from typing import Protocol

from ignite.engine import Engine, Events
from monai.engines import Evaluator

from medical_diffusion_components.engine_state import running

__all__ = ["Convergence", "StopWhenConverged"]

logger = logging.getLogger(__name__)


class Reachable(Protocol):
    """What may end a training."""

    @property
    def reached(self) -> bool: ...

    @property
    def reason(self) -> str: ...


class Convergence:
    """Attached to an evaluator, count how many validations in a row have not been the best so far.

    Ignite's ``EarlyStopping`` counts and stops in one, and so needs the trainer before the evaluator, which a trainer that
    validates needs the other way round. MONAI's ``EarlyStopHandler`` can be given the trainer later, but has no state for a
    checkpoint to keep. Both look only after a validation, so a training that has stopped would train another epoch when it
    is started again.

    Args:
        patience: validations without a better one after which training has converged, at least 1; None is never.

    Raises:
        ValueError: a patience below 1.
    """

    def __init__(self, patience: int | None = None) -> None:
        if patience is not None and patience < 1:
            raise ValueError(f"patience must be at least 1 validation, or null for none; got {patience}")
        self.patience = patience
        self.waited = 0

    def attach(self, evaluator: Evaluator) -> None:
        evaluator.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, evaluator: Evaluator) -> None:
        state = running(evaluator)
        self.waited = 0 if state.best_metric_epoch == state.epoch else self.waited + 1

    @property
    def reached(self) -> bool:
        """Whether patience has run out."""
        return self.patience is not None and self.waited >= self.patience

    @property
    def reason(self) -> str:
        """Why training is to end."""
        return f"converged, no better validation in the last {self.waited}"

    def state_dict(self) -> dict[str, int]:
        """What a checkpoint keeps."""
        return {"waited": self.waited}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Restore how many validations it has waited."""
        self.waited = int(state["waited"])


class StopWhenConverged:
    """End training when it has converged.

    Attach it to the trainer, after the checkpoint, and give ``convergence`` to the checkpoint as one of its objects: how
    many validations it has waited is then restored before this looks. An interrupted training so stops where it would have
    anyway, and one that has stopped does not train on when it is started again.

    Args:
        convergence: attached to the evaluator; or anything else that is ``reached`` at some validation for a ``reason``.
    """

    def __init__(self, convergence: Reachable) -> None:
        self.convergence = convergence

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        state = running(engine)
        if self.convergence.reached and state.epoch < state.max_epochs:
            logger.info(f"stopping in epoch {state.epoch}: {self.convergence.reason}")
            engine.terminate()
