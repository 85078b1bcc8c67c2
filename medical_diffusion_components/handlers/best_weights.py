"""Keep the weights of the best validation or the latest ones, and publish them when training is complete."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.engines import Evaluator
from torch import nn

from medical_diffusion_components.engine_state import running
from medical_diffusion_components.files import check_writable
from medical_diffusion_components.weights import (
    WeightsError,
    load_weights,
    notes_beside,
    save_weights,
    write_weights,
)

__all__ = ["BestWeights", "ForgetBest", "KeepUnlessBetter", "LatestWeights", "PublishWeights", "lower_is_better"]

logger = logging.getLogger(__name__)


def lower_is_better(current: float, best: float) -> bool:
    """For an evaluator's ``metric_cmp_fn``: whether a validation is the best so far. Any number is better than NaN."""
    return current < best or (math.isnan(best) and not math.isnan(current))


class BestWeights:
    """Attached to an evaluator, save ``module`` whenever the key metric is better than ever before.

    Args:
        module: what to save.
        path: where to; a note of what the weights were made from lies beside it.
        made_from: facts for the note; epoch and metrics are added.
    """

    def __init__(self, module: nn.Module, path: str | Path, made_from: Mapping[str, Any]) -> None:
        self.module = module
        self.path = Path(path)
        self.made_from = dict(made_from)
        self.measuring = False

    def attach(self, evaluator: Evaluator) -> None:
        check_writable(self.path.parent)  # now: the first validation comes after an epoch
        evaluator.add_event_handler(Events.EPOCH_COMPLETED, self)

    def measure_former(self, evaluator: Evaluator) -> float | None:
        """Validate the weights that are at ``path`` already: from then on, only better ones are saved.

        Returns:
            their key metric, or None where there are none.

        Raises:
            WeightsError: they are damaged, or those of another architecture.
        """
        if not self.path.is_file():
            return None
        state = {name: tensor.clone() for name, tensor in self.module.state_dict().items()}
        load_weights(self.module, self.path)
        self.measuring = True
        try:
            evaluator.run(1)
        finally:
            self.measuring = False
            self.module.load_state_dict(state)
        found = running(evaluator)
        found.best_metric_epoch = 0  # of no epoch of this training
        return float(found.best_metric)

    def __call__(self, evaluator: Evaluator) -> None:
        if self.measuring:
            return
        state = running(evaluator)
        if state.best_metric_epoch == state.epoch and state.rank == 0:
            metrics = {name: float(value) for name, value in state.metrics.items()}
            save_weights(self.module, self.path, {**self.made_from, "epoch": state.epoch, "validation": metrics})


class KeepUnlessBetter:
    """Attached to a trainer, measure the weights that it would replace, so that they give way to better ones alone.

    Args:
        best_weights: what saves them.
        evaluator: what it is attached to.
    """

    def __init__(self, best_weights: BestWeights, evaluator: Evaluator) -> None:
        self.best_weights = best_weights
        self.evaluator = evaluator
        self.former: float | None = None

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self)
        engine.add_event_handler(Events.COMPLETED, self._say)

    def __call__(self, engine: Engine) -> None:
        self.former = self.best_weights.measure_former(self.evaluator)
        if self.former is not None:
            logger.info(
                f"{self._metric} of {self.best_weights.path}: {self.former:.4g}; only better weights replace it"
            )

    def _say(self, engine: Engine) -> None:
        state = running(self.evaluator)
        if self.former is not None and state.best_metric_epoch == 0:
            logger.info(f"no better than {self._metric} {self.former:.4g}: {self.best_weights.path} stays as it is")
        else:
            logger.info(f"new weights at {self.best_weights.path}: {self._metric} {float(state.best_metric):.4g}")

    @property
    def _metric(self) -> str:
        return str(self.evaluator.state.key_metric_name)


class ForgetBest:
    """Attached to a trainer, forget the best validation so far after a given batch: the best is then one of a later time.

    A first stage's held-out objective, L1 and perceptual loss, rises when the discriminators begin to count. Without this
    handler the lowest is often from before, and what is published has never seen a discriminator.

    Args:
        evaluator: whose ``best_metric`` decides what is saved.
        iteration: after how many batches. The batch is passed once, in a resumed training, too.
    """

    def __init__(self, evaluator: Evaluator, iteration: int) -> None:
        self.evaluator = evaluator
        self.iteration = int(iteration)

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._warn)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        if running(engine).iteration == self.iteration:
            best = running(self.evaluator)
            best.best_metric = best.best_metric_epoch = -1

    def _warn(self, engine: Engine) -> None:
        state = running(engine)
        batches = state.max_epochs * state.epoch_length
        if batches < self.iteration:
            logger.warning(
                f"training ends after {batches} batches, and the adversarial phase counts in full after {self.iteration}: "
                "the published weights will not have been trained with it; train for longer, or let it begin earlier"
            )


class PublishWeights:
    """When training is complete, copy the best weights and their note to where the next stage looks for them.

    Until then nothing is there, so an interrupted first stage is never taken for a finished one.

    Args:
        source: the best weights.
        target: where the next stage looks.
    """

    def __init__(self, source: str | Path, target: str | Path) -> None:
        self.source = Path(source)
        self.target = Path(target)

    def attach(self, engine: Engine) -> None:
        check_writable(self.target.parent)
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        if running(engine).rank > 0:
            return
        notes = notes_beside(self.source)
        if ".json" not in notes:
            raise WeightsError(f"expected a note beside {self.source}, which says what the weights were made from")
        write_weights(self.target, partial(shutil.copyfile, self.source), notes)


class LatestWeights:
    """Attached to a trainer, save ``module`` every so many epochs and after the last.

    For a training without a held-out objective to choose by, as that of a GAN, whose losses say nothing of its volumes.

    Args:
        module: what to save.
        path: where to; a note of what the weights were made from lies beside it.
        made_from: facts for the note; the epoch is added.
        every_epochs: epochs between two saves.
    """

    def __init__(
        self, module: nn.Module, path: str | Path, made_from: Mapping[str, Any], every_epochs: int = 1
    ) -> None:
        self.module = module
        self.path = Path(path)
        self.made_from = dict(made_from)
        self.every_epochs = every_epochs

    def attach(self, engine: Engine) -> None:
        check_writable(self.path.parent)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        state = running(engine)
        last = state.epoch == state.max_epochs
        if state.rank == 0 and (last or state.epoch % self.every_epochs == 0):
            save_weights(self.module, self.path, {**self.made_from, "epoch": state.epoch})
