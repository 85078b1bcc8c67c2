from __future__ import annotations

import math
import warnings

import pytest
import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from torch import nn

from medical_diffusion_components.handlers.optimiser_steps import StepLrSchedule, optimiser_step


def training(epochs: int, length: int, accumulation_steps: int) -> tuple[list[float], list[int | None]]:
    """Learning rate of every optimiser step, and what ``optimiser_step`` says after every iteration."""
    network = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    steps = epochs * math.ceil(length / accumulation_steps)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=0.1)
    rates: list[float] = []
    numbers: list[int | None] = []
    optimizer.register_step_pre_hook(lambda *_: rates.append(optimizer.param_groups[0]["lr"]))
    trainer = SupervisedTrainer(
        device="cpu",
        max_epochs=epochs,
        train_data_loader=[{"image": torch.randn(4, 2), "label": torch.randn(4, 2)}] * length,
        network=network,
        optimizer=optimizer,
        loss_function=nn.MSELoss(),
        accumulation_steps=accumulation_steps,
        decollate=False,
        train_handlers=[StepLrSchedule(scheduler)],
    )
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: numbers.append(optimiser_step(engine)))
    trainer.run()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1), "the schedule has come to its end"
    return rates, numbers


@pytest.mark.parametrize("accumulation_steps", [1, 2, 3])
def test_the_schedule_takes_a_step_with_every_one_of_the_optimiser(accumulation_steps: int) -> None:
    """Five batches per epoch: with two or three accumulated some are left over at its end, and make a step, too."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns of a schedule that goes before its optimiser
        rates, numbers = training(3, 5, accumulation_steps)
    total = 3 * math.ceil(5 / accumulation_steps)
    cosine = [0.1 + 0.9 * (1 + math.cos(math.pi * step / total)) / 2 for step in range(total)]
    assert rates == pytest.approx(cosine)
    assert [number for number in numbers if number is not None] == list(range(1, total + 1))


def test_steps_fall_on_the_last_of_a_group_and_of_an_epoch() -> None:
    assert training(2, 5, 2)[1] == [None, 1, None, 2, 3, None, 4, None, 5, 6]
