from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine, Events
from ignite.metrics import Average
from monai.engines import Evaluator
from torch import nn

from medical_diffusion_components.files import file_hash
from medical_diffusion_components.handlers.best_weights import (
    BestWeights,
    ForgetBest,
    KeepUnlessBetter,
    PublishWeights,
    lower_is_better,
)
from medical_diffusion_components.weights import WeightsError, save_weights


def evaluator(metrics: Sequence[float], module: nn.Module, path: Path) -> Evaluator:
    """An evaluator whose loss in its n-th run is ``metrics[n]``, less being better."""
    values = iter(metrics)
    return Evaluator(
        device="cpu",
        val_data_loader=[0],
        iteration_update=lambda *_: next(values),
        key_val_metric={"val_loss": Average(output_transform=lambda output: output)},
        metric_cmp_fn=lower_is_better,
        val_handlers=[BestWeights(module, path, {"data": "abc"})],
        decollate=False,
    )


def saved(path: Path) -> tuple[float, int, float]:
    note = json.loads(path.with_suffix(".json").read_text())
    return torch.load(path, weights_only=True)["weight"].item(), note["epoch"], note["validation"]["val_loss"]


def number(module: nn.Module, value: float) -> None:
    with torch.no_grad():
        module.weight.fill_(value)


def test_weights_are_written_when_they_are_better_than_ever_before(tmp_path: Path) -> None:
    module, path = nn.Linear(1, 1), tmp_path / "deep" / "best.pt"
    losses = [3.0, 2.0, 2.5, 2.0, 1.0, 4.0]
    validate = evaluator(losses, module, path)
    found = []
    for epoch in range(1, 7):
        number(module, epoch)
        validate.run(epoch)
        found.append(saved(path))
    assert found == [(1, 1, 3), (2, 2, 2), (2, 2, 2), (2, 2, 2), (5, 5, 1), (5, 5, 1)]


def test_a_first_validation_that_is_not_a_number_gives_way_to_the_first_that_is(tmp_path: Path) -> None:
    module, path = nn.Linear(1, 1), tmp_path / "best.pt"
    validate = evaluator([math.nan, math.nan, 5.0, math.nan, 6.0], module, path)
    found = []
    for epoch in range(1, 6):
        number(module, epoch)
        validate.run(epoch)
        found.append(saved(path)[1])
    assert found == [1, 1, 3, 3, 3]


def test_after_a_resume_worse_weights_do_not_replace_the_best(tmp_path: Path) -> None:
    module, path = nn.Linear(1, 1), tmp_path / "best.pt"
    number(module, 7)
    first = evaluator([0.5], module, path)
    first.run(1)
    number(module, 8)
    resumed = evaluator([0.6, 0.4], module, path)
    resumed.state.best_metric, resumed.state.best_metric_epoch = first.state.best_metric, 1
    resumed.run(2)
    assert saved(path) == (7, 1, 0.5)
    resumed.run(3)
    assert saved(path) == (8, 3, pytest.approx(0.4))


def retrained(losses: Sequence[float], path: Path) -> tuple[float, list[float]]:
    """What is saved after epochs with these losses, the first being that of the weights at ``path``.

    Returns also the weights that were in the module while each loss was measured.
    """
    module, seen = nn.Linear(1, 1), []
    validate = evaluator(losses, module, path)
    validate.add_event_handler(Events.ITERATION_COMPLETED, lambda _: seen.append(module.weight.item()))
    engine = Engine(lambda *_: None)
    [best] = [
        handler for handler, *_ in validate._event_handlers[Events.EPOCH_COMPLETED] if isinstance(handler, BestWeights)
    ]
    number(module, 50)
    KeepUnlessBetter(best, validate).attach(engine)

    def epoch(engine: Engine) -> None:
        number(module, module.weight.item() + engine.state.epoch)
        validate.run(engine.state.epoch)

    engine.add_event_handler(Events.EPOCH_COMPLETED, epoch)
    engine.run([0], max_epochs=len(losses) - path.is_file())
    return torch.load(path, weights_only=True)["weight"].item(), seen


@pytest.mark.parametrize(("losses", "kept", "told"), [
    ((2.0, 3.0, 2.0), 7, "no better than val_loss 2"),
    ((2.0, 3.0, 1.5), 53, "new weights at"),
    ((2.0, 1.0, 1.5), 51, "new weights at"),
])  # fmt: skip
def test_weights_that_were_there_give_way_to_better_ones_alone(
    losses: tuple, kept: float, told: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module, path = nn.Linear(1, 1), tmp_path / "model.pt"
    number(module, 7)
    save_weights(module, path, {"data": "of before"})
    before = path.with_suffix(".json").read_bytes()
    with caplog.at_level(logging.INFO):
        found, seen = retrained(losses, path)
    assert found == kept
    assert seen == [7, 51, 53], "the former ones are measured, and training begins with its own"
    assert (path.with_suffix(".json").read_bytes() == before) == (kept == 7)
    assert told in caplog.text


def test_without_former_weights_the_first_ones_are_saved(tmp_path: Path) -> None:
    assert retrained((3.0, 4.0), tmp_path / "model.pt") == (51, [51, 53])


def trained(epochs: int, forget_after: int, losses: Sequence[float], path: Path) -> list[tuple[float, int, float]]:
    """What is saved after each epoch of two batches; the weights are the number of the epoch."""
    module, found = nn.Linear(1, 1), []
    validate = evaluator(losses, module, path)
    engine = Engine(lambda *_: None)
    ForgetBest(validate, forget_after).attach(engine)

    @engine.on(Events.EPOCH_COMPLETED)
    def _(engine: Engine) -> None:
        number(module, engine.state.epoch)
        validate.run(engine.state.epoch)
        found.append(saved(path))

    engine.run([0, 1], max_epochs=epochs)
    return found


def test_the_best_of_a_later_phase_replaces_a_better_one_from_before(tmp_path: Path, caplog) -> None:
    losses = [2.0, 1.0, 4.0, 3.0, 3.5]
    found = trained(5, 6, losses, tmp_path / "best.pt")  # six batches are three epochs
    assert found == [(1, 1, 2), (2, 2, 1), (3, 3, 4), (4, 4, 3), (4, 4, 3)]
    assert trained(5, 4, losses, tmp_path / "second.pt")[-1] == (
        2,
        2,
        1,
    )  # the second epoch's end is of the later phase
    assert not caplog.records


def test_a_training_that_ends_before_the_later_phase_keeps_its_best_and_says_so(tmp_path: Path, caplog) -> None:
    assert trained(3, 7, [2.0, 1.0, 4.0], tmp_path / "best.pt")[-1] == (2, 2, 1)
    assert "ends after 6 batches, and the adversarial phase counts in full after 7" in caplog.text


def test_a_training_whose_last_batch_is_the_first_of_the_later_phase_has_seen_it(tmp_path: Path, caplog) -> None:
    assert trained(3, 6, [2.0, 1.0, 4.0], tmp_path / "best.pt")[-1] == (3, 3, 4)
    assert not caplog.records


def test_the_note_holds_facts_metrics_and_hash(tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    evaluator([0.5], nn.Linear(1, 1), path).run(4)
    note = json.loads(path.with_suffix(".json").read_text())
    assert (note["data"], note["epoch"], note["validation"]) == ("abc", 4, {"val_loss": 0.5})
    assert note["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_metric_that_is_no_number_is_null_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    validate = evaluator([0.5], nn.Linear(1, 1), path)
    validate.add_event_handler(Events.ITERATION_COMPLETED, lambda e: e.state.metrics.update(distance=float("nan")))
    validate.run(1)
    found = json.loads(path.with_suffix(".json").read_text())["validation"]
    assert found == {"val_loss": 0.5, "distance": None, "distance_reason": "not a number"}


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    validate = evaluator([0.5], nn.Linear(1, 1), tmp_path / "best.pt")
    validate.state.rank = 1
    validate.run(1)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "best.pt").write_bytes(b"weights")
    (tmp_path / "best.json").write_text("{}")
    return tmp_path / "best.pt"


def publishing(source: Path, target: Path, fails: bool = False, rank: int = 0) -> Engine:
    def step(*_: object) -> None:
        assert not target.exists(), "published before the end"
        if fails:
            raise KeyError

    engine = Engine(step)
    engine.state.rank = rank
    PublishWeights(source, target).attach(engine)
    return engine


def test_best_weights_are_published_with_their_note_at_the_end_of_training(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "models" / "model.pt"
    publishing(source, target).run([0, 1], max_epochs=2)
    assert target.read_bytes() == b"weights" and json.loads(target.with_suffix(".json").read_text()) == {
        "sha256": file_hash(target)
    }
    assert not target.with_suffix(".at_home.json").exists(), "there was none"
    source.with_suffix(".at_home.json").write_text('{"data_sha256": "f"}')
    publishing(source, tmp_path / "own" / "model.pt").run([0], max_epochs=1)
    assert json.loads((tmp_path / "own" / "model.at_home.json").read_text())["data_sha256"] == "f"


def test_an_interrupted_training_publishes_nothing(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "models" / "model.pt"
    with pytest.raises(KeyError):
        publishing(source, target, fails=True).run([0], max_epochs=1)
    assert not target.parent.exists()


def test_other_ranks_publish_nothing(source: Path, tmp_path: Path) -> None:
    publishing(source, tmp_path / "model.pt", rank=1).run([0], max_epochs=1)
    assert not (tmp_path / "model.pt").exists()


def test_without_its_note_no_weights_are_published(source: Path, tmp_path: Path) -> None:
    source.with_suffix(".json").unlink()
    with pytest.raises(WeightsError, match=r"expected a note beside .*best.*\.pt"):
        publishing(source, tmp_path / "model.pt").run([0], max_epochs=1)
    assert not (tmp_path / "model.pt").exists()
