from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from medical_diffusion_components.losses import AlphaWGANLoss, gradient_penalty


class Linear(nn.Module):
    """x -> w . x, whose gradient is w everywhere."""

    def __init__(self, *weights: float) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor(weights))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weights


def points(*rows: list[float]) -> Tensor:
    return torch.tensor(rows).reshape(len(rows), -1, 1, 1, 1)


def test_the_penalty_of_a_linear_function_is_that_of_its_slope() -> None:
    function = Linear(3.0, 4.0)
    penalty = gradient_penalty(function, points([1.0, 2.0]), points([0.0, 5.0]), torch.tensor([0.3]))
    assert penalty.item() == pytest.approx((5 - 1) ** 2)
    penalty.backward()  # d/dw (|w| - 1)^2 = 2 (|w| - 1) w / |w|
    torch.testing.assert_close(function.weights.grad, torch.tensor([4.8, 6.4]))


def test_the_slope_is_taken_between_both_points_at_the_share_of_the_real_one() -> None:
    class Square(nn.Module):  # slope 2 x
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1).square().sum(1)

    real, fake, share = points([2.0], [4.0]), points([1.0], [0.0]), torch.tensor([0.75, 0.25])
    between = torch.tensor([1.75, 1.0])
    expected = (2 * between - 1).square().mean()
    torch.testing.assert_close(gradient_penalty(Square(), real, fake, share), expected)


def test_terms_are_those_of_the_objective() -> None:
    loss = AlphaWGANLoss(reconstruction_weight=10.0, penalty_weight=7.0, code_weight=0.5)
    real, fake = torch.zeros(2, 1, 1, 2, 3), torch.full((2, 1, 1, 2, 3), 0.25)
    a, b, c = torch.tensor([1.0, 3.0]), torch.tensor([0.0, 8.0]), torch.tensor([5.0, 7.0])
    assert loss.generator(fake, real, a, b, c) == {"l1": 2.5, "adversarial": -6.0, "code_adversarial": -3.0}
    assert loss.discriminator(a, b, c, torch.tensor(2.0)) == {"wasserstein": 4.0 + 6.0 - 4.0, "penalty": 14.0}
    assert loss.code_discriminator(a, b, torch.tensor(3.0)) == {"code_wasserstein": 2.0, "code_penalty": 21.0}
