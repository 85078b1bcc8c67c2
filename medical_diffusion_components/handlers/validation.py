"""When to validate."""

from __future__ import annotations

from ignite.engine import Engine, Events
from monai.handlers import ValidationHandler

__all__ = ["ValidationWithLastEpoch"]


class ValidationWithLastEpoch(ValidationHandler):
    """MONAI's ``ValidationHandler``, which also validates after the last epoch, whatever the interval.

    Without that, a training shorter than its interval would end with no validated weights.
    """

    def attach(self, engine: Engine) -> None:
        """Validate at the end of every ``interval``-th epoch and of the last."""

        def due(engine: Engine, epoch: int) -> bool:
            return epoch % self.interval == 0 or epoch == engine.state.max_epochs

        engine.add_event_handler(Events.EPOCH_COMPLETED(event_filter=due), self)
