from __future__ import annotations

import pytest
import torch
from monai.engines import SupervisedTrainer
from torch import nn

from medical_diffusion_components.handlers.clip_gradients import ClipGradients


def updates(max_norm: float | None, accumulation_steps: int) -> list[torch.Tensor]:
    """Changes of the weights by plain gradient descent of rate 1: the gradients that the optimiser saw."""
    torch.manual_seed(0)
    network, seen = nn.Linear(3, 2), []
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)

    def record(*_) -> None:
        seen.append(torch.cat([p.grad.flatten().clone() for p in network.parameters()]))

    optimizer.register_step_pre_hook(record)
    batches = [{"image": 2 * torch.randn(4, 3), "label": 9 * torch.randn(4, 2)} for _ in range(5)]
    SupervisedTrainer(
        device="cpu",
        max_epochs=1,
        train_data_loader=batches,
        network=network,
        optimizer=optimizer,
        loss_function=nn.MSELoss(),
        accumulation_steps=accumulation_steps,
        decollate=False,
        train_handlers=[ClipGradients(network, max_norm)],
    ).run()
    return seen


@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_the_first_step_is_the_whole_gradient_shrunk_and_no_step_is_longer(accumulation_steps: int) -> None:
    free, clipped = updates(None, accumulation_steps), updates(0.5, accumulation_steps)
    assert len(free) == len(clipped) == -(-5 // accumulation_steps)
    assert free[0].norm() > 0.5
    torch.testing.assert_close(
        clipped[0], 0.5 * free[0] / free[0].norm(), rtol=1e-4, atol=1e-6
    )  # once, when accumulated
    assert all(update.norm() <= 0.5 + 1e-6 for update in clipped)


def test_a_gradient_below_the_norm_stays_as_it_is() -> None:
    assert all(torch.equal(*pair) for pair in zip(updates(None, 1), updates(1e4, 1)))


@pytest.mark.parametrize("max_norm", [0.0, -1.0])
def test_a_norm_that_is_not_positive_is_refused(max_norm: float) -> None:
    with pytest.raises(ValueError, match=f"must be positive, or None for any, got {max_norm}"):
        ClipGradients(nn.Linear(1, 1), max_norm)
