from __future__ import annotations

import io
import logging
import sys
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from tqdm import tqdm

from medical_diffusion_components.handlers import progress
from medical_diffusion_components.handlers.progress import TrainingProgress


def run(start: int = 0, rank: int = 0, fails: bool = False) -> tuple[TrainingProgress, list[tuple[int, int, int]]]:
    """Three epochs of four batches, from iteration ``start`` on; (initial, total, n) of the bar in each iteration."""
    handler, seen = TrainingProgress("training", ("loss", "missing")), []

    def step(*_: object) -> dict:
        if fails:
            raise KeyError("case_7")
        return {"loss": torch.tensor(0.5, requires_grad=True)}

    engine = Engine(step)
    engine.state.rank = rank

    def resume(engine: Engine) -> None:
        engine.state.iteration, engine.state.epoch = start, start // 4

    engine.add_event_handler(Events.STARTED, resume)
    handler.attach(engine)
    if rank == 0:
        engine.add_event_handler(
            Events.ITERATION_COMPLETED, lambda _: seen.append((handler.bar.initial, handler.bar.total, handler.bar.n))
        )
    engine.run([0] * 4, max_epochs=3)
    return handler, seen


@pytest.mark.parametrize("start", [0, 6])
def test_the_bar_counts_the_batches_of_the_whole_training(start: int, capsys) -> None:
    _, seen = run(start)
    assert seen == [(start, 12, n) for n in range(start + 1, 13)]
    assert "training: 100%" in capsys.readouterr().err


@pytest.fixture
def eager(monkeypatch) -> None:
    """Redraw at every batch."""

    class Eager(tqdm):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options | {"mininterval": 0, "miniters": 1})

    monkeypatch.setattr(progress, "tqdm", Eager)


def test_the_bar_shows_time_left_epoch_and_losses(capsys, eager: None) -> None:
    run()
    shown = capsys.readouterr().err
    assert "12/12 [" in shown and "<00:00" in shown and "batch/s" in shown
    assert "epoch=2/3, loss=0.5" in shown and "missing" not in shown


def test_a_bar_that_is_redrawn_seldom_waits_for_no_value() -> None:
    """Reading a loss waits for the device, so a loss is read when the bar is drawn and not in every iteration."""
    handler = TrainingProgress("training")
    reads = []

    class Loss(float):
        def __float__(self) -> float:
            reads.append(1)
            return 0.5

    engine = Engine(lambda *_: {"loss": Loss()})
    engine.state.rank = 0
    handler.attach(engine)
    engine.run([0] * 200, max_epochs=1)
    assert len(reads) < 20


class Terminal(io.StringIO):
    """Where the bar and the log go."""

    def isatty(self) -> bool:
        return True


def test_a_line_of_the_log_begins_where_a_line_of_the_terminal_does(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, logger = Terminal(), logging.getLogger("evaluator")
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    handlers = [logging.StreamHandler(sys.stdout)]
    monkeypatch.setattr(logger, "handlers", handlers)
    monkeypatch.setattr(logger, "propagate", False)
    logger.setLevel(logging.INFO)
    engine = Engine(lambda *_: {"loss": torch.tensor(0.25)})
    engine.state.rank = 0
    TrainingProgress("training").attach(engine)
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: logger.info(f"epoch {engine.state.epoch}"))
    engine.run([0] * 4, max_epochs=2)
    assert [line.rsplit("\r")[-1] for line in terminal.getvalue().split("\n")[:2]] == ["epoch 1", "epoch 2"]
    assert logger.handlers == handlers


def test_beside_the_bar_a_handler_of_the_log_leaves_out_what_it_leaves_out_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal, logger = Terminal(), logging.getLogger("evaluator")
    monkeypatch.setattr(sys, "stderr", terminal)
    handler = logging.StreamHandler(terminal)
    handler.setLevel(logging.WARNING)
    monkeypatch.setattr(logger, "handlers", [handler])
    monkeypatch.setattr(logger, "propagate", False)
    logger.setLevel(logging.DEBUG)

    def log(engine: Engine) -> None:
        logger.info("a detail")
        logger.warning("a warning")

    engine = Engine(lambda *_: {"loss": torch.tensor(0.25)})
    engine.state.rank = 0
    TrainingProgress("training").attach(engine)
    engine.add_event_handler(Events.EPOCH_COMPLETED, log)
    engine.run([0], 1)
    assert "a warning\n" in terminal.getvalue() and "a detail" not in terminal.getvalue()
    assert handler.stream is terminal


def test_other_ranks_show_nothing(capsys) -> None:
    run(rank=1)
    assert capsys.readouterr().err == ""


def test_an_error_passes_through(capsys) -> None:
    with pytest.raises(KeyError, match="case_7"):
        run(fails=True)


@pytest.mark.filterwarnings("error")
def test_losses_that_still_have_a_graph_are_shown_without_a_warning(eager: None) -> None:
    torch.set_warn_always(True)
    try:
        run()
    finally:
        torch.set_warn_always(False)


def test_a_line_for_each_epoch_reaches_the_log_if_it_is_wanted(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        run()
        assert not [record for record in caplog.records if "handlers.progress" in record.name]
        engine = Engine(lambda *_: {"loss": torch.tensor(0.25), "other": 1.0})
        engine.state.rank = 0
        TrainingProgress("fine-tuning", log_epochs=True).attach(engine)
        engine.run([0] * 4, max_epochs=2)
    expected = [f"fine-tuning, epoch {epoch} of 2: loss 0.25, 4 batches in 0 s" for epoch in (1, 2)]
    assert [message for message in caplog.messages if "fine-tuning" in message] == expected
