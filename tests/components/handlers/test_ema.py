from __future__ import annotations

import pytest
import torch
from monai.engines import SupervisedTrainer
from torch import nn

from medical_diffusion_components.handlers.ema import ExponentialMovingAverage


class Scaled(nn.Module):
    """A parameter and a buffer that counts its calls."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([weight, -weight]))
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.calls += 1
        return x * self.weight


def run(
    ema_options: dict, epochs: int, length: int, accumulation_steps: int
) -> tuple[Scaled, Scaled, list[torch.Tensor]]:
    """Train; return network, average and the weights after every optimiser step."""
    network, averaged, steps = Scaled(), Scaled(5.0), []
    optimizer = torch.optim.SGD(network.parameters(), lr=0.3)
    optimizer.register_step_post_hook(lambda *_: steps.append(network.weight.detach().clone()))
    batches = [{"image": torch.randn(4, 2), "label": torch.randn(4, 2)} for _ in range(length)]
    SupervisedTrainer(
        device="cpu",
        max_epochs=epochs,
        train_data_loader=batches,
        network=network,
        optimizer=optimizer,
        loss_function=nn.MSELoss(),
        accumulation_steps=accumulation_steps,
        decollate=False,
        train_handlers=[ExponentialMovingAverage(network, averaged, **ema_options)],
    ).run()
    return network, averaged, steps


@pytest.mark.parametrize("accumulation_steps", [1, 2, 3])
@pytest.mark.parametrize(("every", "start"), [(1, 0), (1, 4), (2, 4), (3, 5)])
def test_average_is_the_recursion_over_optimiser_steps(every: int, start: int, accumulation_steps: int) -> None:
    """Five batches per epoch: with two or three accumulated some are left over at its end, and make a step, too."""
    _, averaged, steps = run({"decay": 0.7, "every": every, "start": start}, 3, 5, accumulation_steps)
    assert len(steps) == 3 * -(-5 // accumulation_steps)
    expected = torch.tensor([1.0, -1.0])  # what the network had when the average was made
    for number, weight in enumerate(steps, 1):
        if number % every == 0:
            expected = 0.7 * expected + 0.3 * weight if number >= start else weight
    torch.testing.assert_close(averaged.weight.detach(), expected)


def test_closed_form_of_a_constant_run() -> None:
    """decay^n of the old and the rest of the new, when the weights jump once and stay."""
    network, averaged = Scaled(0.0), Scaled()
    ema = ExponentialMovingAverage(network, averaged, decay=0.9, every=1, start=0)
    with torch.no_grad():
        network.weight.fill_(2.0)
    engine = SupervisedTrainer(
        device="cpu",
        max_epochs=1,
        train_data_loader=[{"image": torch.zeros(1, 2), "label": torch.zeros(1, 2)}] * 8,
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.0),
        loss_function=nn.MSELoss(),
        decollate=False,
        train_handlers=[ema],
    )
    engine.run()
    torch.testing.assert_close(averaged.weight.detach(), torch.full((2,), 2.0 * (1 - 0.9**8)))


def test_buffers_are_copied_and_the_average_takes_no_gradients() -> None:
    network, averaged, _ = run({"decay": 0.9, "every": 1, "start": 0}, 2, 3, 1)
    assert network.calls == averaged.calls == 6
    assert not averaged.weight.requires_grad and not averaged.training


@pytest.mark.parametrize("decay", [-0.1, 1.0, 2.0])
def test_a_decay_that_is_no_share_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match=rf"\[0, 1\), got {decay}"):
        ExponentialMovingAverage(Scaled(), Scaled(), decay=decay)


@pytest.mark.parametrize("accumulation_steps", [1, 2])
@pytest.mark.parametrize(("every", "gamma"), [(1, 12.0), (1, 0.5), (2, 3.0)])
def test_power_function_average_is_the_recursion_of_the_paper(
    every: int, gamma: float, accumulation_steps: int
) -> None:
    """Karras et al., section 3.1: beta_n = (1 - 1/n)^(gamma + 1); decay and start do not count."""
    options = {"decay": 0.3, "every": every, "start": 1000, "gamma": gamma}
    _, averaged, steps = run(options, 3, 5, accumulation_steps)
    seen, expected = steps[every - 1 :: every], torch.zeros(2)
    for number, weight in enumerate(seen, 1):
        beta = (1 - 1 / number) ** (gamma + 1)
        expected = beta * expected + (1 - beta) * weight
    torch.testing.assert_close(averaged.weight.detach(), expected)


def test_with_gamma_zero_it_is_the_mean_of_all_weights() -> None:
    _, averaged, steps = run({"every": 1, "gamma": 0.0}, 2, 5, 1)
    torch.testing.assert_close(averaged.weight.detach(), torch.stack(steps).mean(0))


def test_a_gamma_of_no_average_is_refused() -> None:
    with pytest.raises(ValueError, match="gamma must be above -1, got -1"):
        ExponentialMovingAverage(Scaled(), Scaled(), gamma=-1.0)
