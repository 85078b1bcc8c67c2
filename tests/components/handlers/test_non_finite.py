from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from engines_for_tests import Trainer
from ignite.engine import Events

from medical_diffusion_components.handlers.checkpoint import TrainingCheckpoint
from medical_diffusion_components.handlers.non_finite import NonFiniteLossError, StopOnNonFinite
from medical_diffusion_components.workflow import PLACES


def spoilt(bad: int, value: float, check_every: int | None, epochs: int = 2) -> Trainer:
    """A training whose loss is ``value`` in iteration ``bad``."""
    trainer = Trainer(epochs)

    def spoil(engine: Trainer) -> None:
        if engine.state.iteration == bad:
            engine.state.output["loss"] = torch.tensor(value)

    trainer.add_event_handler(Events.ITERATION_COMPLETED, spoil)
    StopOnNonFinite(check_every).attach(trainer)
    return trainer


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_iteration_term_and_cases_are_named_at_once(value: float) -> None:
    trainer = spoilt(5, value, None)
    with pytest.raises(NonFiniteLossError) as error:
        trainer.run()
    iteration, cases = trainer.seen[-1]
    assert iteration == 5
    assert f"iteration 5: loss; cases of that batch: {cases}" in str(error.value)


def test_a_rare_look_names_the_first_bad_batch_all_the_same() -> None:
    trainer = spoilt(4, float("nan"), 2)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=5), lambda engine: engine.state.output)
    with pytest.raises(NonFiniteLossError, match="iteration 4: loss") as error:
        trainer.run()
    assert str(trainer.seen[3][1]) in str(error.value)


def test_what_it_advises_is_not_refused_by_resume() -> None:
    """Settings that resuming compares are not among those that the message says to change and run again."""
    with pytest.raises(NonFiniteLossError) as error:
        spoilt(2, float("nan"), None).run()
    again, other = re.split(r"(?<=float32)\. ", str(error.value))
    assert set(re.findall(r"--(\w+)", again)) == {"amp"} <= PLACES
    assert "Another learning rate" in other and not {"learning_rate", "gradient_clip"} & PLACES


@pytest.mark.parametrize("check_every", [2, 100])
def test_nothing_is_left_unlooked_at_when_an_epoch_ends(check_every: int) -> None:
    trainer = spoilt(3, float("nan"), check_every)
    with pytest.raises(NonFiniteLossError, match="iteration 3"):
        trainer.run()
    assert len(trainer.seen) == 3


def test_finite_losses_stop_nothing_and_volumes_are_not_kept() -> None:
    trainer = spoilt(99, 0.0, 100)
    handler = StopOnNonFinite(100)
    handler.attach(trainer)
    kept = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda _: kept.extend(handler.pending))
    trainer.run()
    assert len(trainer.seen) == 6 and kept
    assert all(value.ndim == 0 for _, _, losses in kept for value in losses.values())


@pytest.mark.parametrize("bad", [3, 5])
def test_the_last_checkpoint_is_from_before_it(tmp_path: Path, bad: int) -> None:
    trainer = spoilt(bad, float("nan"), None)
    checkpoint = TrainingCheckpoint(tmp_path, {"n": trainer.network}, trainer.sampler, batch_size=2, every_minutes=0)
    checkpoint.attach(trainer)
    with pytest.raises(NonFiniteLossError):
        trainer.run()
    assert checkpoint.checkpoints()[0].name == f"checkpoint_{bad - 1:09d}.pt"
