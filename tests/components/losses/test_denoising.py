from __future__ import annotations

import pytest
import torch

from medical_diffusion_components.losses.denoising import DenoisingLoss


def test_norms_are_the_mean_absolute_and_the_mean_squared_error() -> None:
    pred, target = torch.randn(2, 3, 4, 2, 5), torch.randn(2, 3, 4, 2, 5)
    torch.testing.assert_close(DenoisingLoss("l1")(pred, target), (pred - target).abs().mean())
    torch.testing.assert_close(DenoisingLoss("mse")(pred, target), (pred - target).square().mean())


def test_the_norm_of_the_paper_is_the_default() -> None:
    assert DenoisingLoss()(torch.zeros(4), torch.full((4,), 3.0)) == 3


def test_an_unknown_norm_is_refused() -> None:
    with pytest.raises(ValueError, match='"l1" or "mse", got .huber.'):
        DenoisingLoss("huber")
