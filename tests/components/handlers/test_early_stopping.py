from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace

import pytest
from engines_for_tests import Trainer
from ignite.engine import Events
from ignite.metrics import Average
from monai.engines import Evaluator

from medical_diffusion_components.handlers.best_weights import lower_is_better
from medical_diffusion_components.handlers.checkpoint import TrainingCheckpoint
from medical_diffusion_components.handlers.early_stopping import Convergence, StopWhenConverged
from medical_diffusion_components.handlers.validation import ValidationWithLastEpoch

LOSSES = [5.0, 4.0, 4.5, 3.0, 3.0, 3.5, 3.2, 1.0, 0.5, 0.4]  # best in epochs 1, 2, 4, 8, 9, 10


class Losses(Evaluator):
    """MONAI's evaluator, which finds the next of ``LOSSES`` in every epoch."""

    def __init__(self) -> None:
        super().__init__(
            device="cpu",
            val_data_loader=[{}],
            key_val_metric={"loss": Average()},
            metric_cmp_fn=lower_is_better,
            decollate=False,
        )

    def _iteration(self, engine: Evaluator, batchdata: dict) -> float:
        return LOSSES[engine.state.epoch - 1]


def train(
    folder: Path, patience: int | None, epochs: int = 10, interval: int = 1, die_after: int | None = None
) -> SimpleNamespace:
    """Train, or go on, and say which epochs ran and whether it ended properly."""
    evaluator, ended = Losses(), []
    convergence = Convergence(patience)
    convergence.attach(evaluator)
    trainer = Trainer(epochs)
    ValidationWithLastEpoch(interval, evaluator).attach(trainer)
    checkpoint = TrainingCheckpoint(
        folder, {"network": trainer.network, "convergence": convergence}, trainer.sampler, 2, evaluator=evaluator
    )
    checkpoint.attach(trainer)
    StopWhenConverged(convergence).attach(trainer)
    trainer.add_event_handler(Events.COMPLETED, lambda: ended.append(True))
    if die_after is not None:
        trainer.add_event_handler(Events.EPOCH_STARTED(once=die_after + 1), _die)
    with contextlib.suppress(KeyboardInterrupt):
        trainer.run()
    epochs = sorted({(iteration - 1) // 3 + 1 for iteration, _ in trainer.seen})
    return SimpleNamespace(epochs=epochs, ended=bool(ended), waited=convergence.waited)


def _die() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(("patience", "last"), [(1, 3), (2, 6), (3, 7), (4, 10), (None, 10)])
def test_training_ends_after_so_many_validations_without_a_better_one(tmp_path: Path, patience, last: int) -> None:
    found = train(tmp_path, patience)
    assert found.epochs == list(range(1, last + 1)) and found.ended


def test_what_counts_are_validations_not_epochs(tmp_path: Path) -> None:
    """Validated are the epochs 3, 6, 9, 10 with 4.5, 3.5, 0.5, 0.4, then never: all better."""
    assert train(tmp_path / "a", patience=1, interval=3).epochs[-1] == 10
    # 2, 4, 6: 4.0, 3.0, 3.5
    assert train(tmp_path / "b", patience=1, interval=2).epochs[-1] == 6


@pytest.mark.parametrize("die_after", [1, 3, 4, 5, 6])
def test_an_interrupted_training_stops_where_an_uninterrupted_one_does(tmp_path: Path, die_after: int) -> None:
    first = train(tmp_path, patience=3, die_after=die_after)
    assert not first.ended and first.epochs[-1] == die_after
    again = train(tmp_path, patience=3)
    assert again.ended and first.epochs + again.epochs == list(range(1, 8))


def test_a_training_that_has_stopped_does_not_train_on(tmp_path: Path) -> None:
    train(tmp_path, patience=2)
    again = train(tmp_path, patience=2)
    assert again.epochs == [] and again.ended and again.waited == 2


def test_what_ends_with_its_last_epoch_is_not_said_to_stop(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    train(tmp_path / "a", patience=2, epochs=6)
    assert "stopping in epoch" not in caplog.text
    train(tmp_path / "b", patience=2)
    assert "stopping in epoch 6: converged, no better validation in the last 2" in caplog.text


def test_with_more_patience_it_goes_on(tmp_path: Path) -> None:
    train(tmp_path, patience=2)
    assert train(tmp_path, patience=3).epochs == [7]


def test_no_patience_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 validation, or null for none; got 0"):
        Convergence(0)
