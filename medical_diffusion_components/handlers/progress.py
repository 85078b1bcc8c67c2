"""Progress of a whole training, with the time left."""

from __future__ import annotations

import logging
import sys
import time
from contextlib import ExitStack

import torch
from ignite.engine import Engine, Events
from tqdm import tqdm
from tqdm.contrib import DummyTqdmFile

from medical_diffusion_components.engine_state import running

__all__ = ["TrainingProgress"]

logger = logging.getLogger(__name__)


class TrainingProgress:
    """One bar for all epochs of a training, starting where a resumed one stands.

    Args:
        description: what is trained.
        show: keys of ``engine.state.output`` to show behind the bar.
        log_epochs: whether to log a line after each epoch, with the values of its last batch.
    """

    def __init__(self, description: str, show: tuple[str, ...] = ("loss",), log_epochs: bool = False) -> None:
        self.description = description
        self.show = tuple(show)
        self.log_epochs = log_epochs
        self.bar: tqdm | None = None
        self.above_bar = ExitStack()
        self.epoch_started = 0.0

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self.open)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        if self.log_epochs:
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._log)
        engine.add_event_handler(Events.COMPLETED, self.close)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._fail)

    def open(self, engine: Engine) -> None:
        """Open the bar in the first epoch of this run; only the first rank shows one."""
        self.epoch_started = time.perf_counter()
        if self.bar is None:
            state = running(engine)
            # written to a log file, a bar that redraws ten times a second is a nuisance
            pace = 0.5 if sys.stderr.isatty() else 30.0
            self.bar = tqdm(
                desc=self.description,
                total=state.max_epochs * state.epoch_length,
                initial=state.iteration,
                unit="batch",
                mininterval=pace,
                maxinterval=pace,
                disable=state.rank > 0,
            )
            if sys.stderr.isatty():  # or a line of the log would begin at the end of the bar
                for handler in _console_handlers():
                    self.above_bar.callback(handler.setStream, handler.setStream(DummyTqdmFile(handler.stream)))

    def __call__(self, engine: Engine) -> None:
        # reading a value waits for the device, so only when the bar is redrawn anyway
        if self.bar is not None and self.bar.update(1):
            state = running(engine)
            self.bar.set_postfix({"epoch": f"{state.epoch}/{state.max_epochs}", **self._values(engine)}, refresh=False)

    def _values(self, engine: Engine) -> dict[str, str]:
        output = running(engine).output
        shown = {key: output[key] for key in self.show if key in output}
        return {k: f"{float(v.detach() if torch.is_tensor(v) else v):.4g}" for k, v in shown.items()}

    def _log(self, engine: Engine) -> None:
        state = running(engine)
        values = "".join(f" {key} {value}," for key, value in self._values(engine).items())
        batches = f"{state.epoch_length} batch{'es' * (state.epoch_length > 1)}"
        seconds = time.perf_counter() - self.epoch_started
        logger.info(
            f"{self.description}, epoch {state.epoch} of {state.max_epochs}:{values} {batches} in {seconds:.0f} s"
        )

    def close(self, engine: Engine) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.above_bar.close()
            self.bar.close()
            self.bar = None

    def _fail(self, engine: Engine, error: BaseException) -> None:
        self.close(engine)
        raise error


def _console_handlers() -> set[logging.StreamHandler]:
    """Those of all loggers that write to the terminal: of the root, and of MONAI's ``StatsHandler``."""
    loggers = [logging.root, *map(logging.getLogger, list(logging.root.manager.loggerDict))]
    console = (sys.stdout, sys.stderr)
    return {h for one in loggers for h in one.handlers if type(h) is logging.StreamHandler and h.stream in console}
