from __future__ import annotations

import pytest
from ignite.engine import Engine
from monai.engines import Evaluator

from medical_diffusion_components.handlers.validation import ValidationWithLastEpoch


@pytest.mark.parametrize(
    ("interval", "epochs", "expected"),
    [(1, 3, [1, 2, 3]), (3, 7, [3, 6, 7]), (3, 6, [3, 6]), (10, 4, [4]), (4, 4, [4])],
)
def test_validation_comes_every_interval_and_once_at_the_end(interval: int, epochs: int, expected: list[int]) -> None:
    validated = []
    evaluator = Evaluator(
        device="cpu",
        val_data_loader=[0],
        iteration_update=lambda engine, _: validated.append(engine.state.epoch),
        decollate=False,
    )
    trainer = Engine(lambda *_: None)
    ValidationWithLastEpoch(interval=interval, validator=evaluator).attach(trainer)
    trainer.run([0, 1], max_epochs=epochs)
    assert validated == expected
