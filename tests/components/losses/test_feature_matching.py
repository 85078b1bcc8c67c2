from __future__ import annotations

import pytest
import torch

from medical_diffusion_components.losses.feature_matching import feature_matching_loss


def test_loss_is_the_sum_over_layers_with_four_over_their_number_as_weight():
    real = [torch.zeros(2, 3, 4), torch.tensor([1.0, 2.0])]
    fake = [torch.full((2, 3, 4), -0.5), torch.tensor([4.0, 2.0])]
    assert feature_matching_loss(real, fake).item() == pytest.approx(4 / 2 * (0.5 + 3 / 2))
    assert feature_matching_loss(2 * real, 2 * fake).item() == pytest.approx(2 * (0.5 + 3 / 2)), (
        "of four: the plain sum"
    )


def test_gradient_goes_to_the_fake_features_alone():
    real = [torch.randn(2, 3, requires_grad=True) for _ in range(2)]
    fake = [torch.randn(2, 3, requires_grad=True) for _ in range(2)]
    feature_matching_loss(real, fake).backward()
    for r, f in zip(real, fake):
        assert r.grad is None
        torch.testing.assert_close(f.grad, 4 / 2 * (f - r).sign().detach() / 6)


@pytest.mark.parametrize("real, fake", [(2, 1), (1, 2), (0, 0)])
def test_lists_of_other_length_or_without_features_are_errors(real, fake):
    with pytest.raises(ValueError, match=f"got {real} and {fake}"):
        feature_matching_loss([torch.zeros(1)] * real, [torch.zeros(1)] * fake)
