from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from medical_diffusion_components.losses.vqgan import DiscriminatorPair, VQGANLoss
from medical_diffusion_components.networks.discriminators import DiscriminatorOutput


class MeanSquare(nn.Module):
    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        assert input.ndim == 4
        return (input - target).square().mean()


WEIGHTS = {"l1_weight": 2, "perceptual_weight": 3, "slice_weight": 5, "volume_weight": 7, "feature_matching_weight": 11}


def verdict(slice_logit: float, volume_logit: float, *features: float) -> DiscriminatorPair:
    maps = [torch.full((1, 2), float(value)) for value in features]
    logits = torch.tensor([[slice_logit], [volume_logit]], dtype=torch.float32)
    return DiscriminatorPair(DiscriminatorOutput(logits[0], maps), DiscriminatorOutput(logits[1], maps))


def test_default_weights_are_those_of_the_paper():
    loss = VQGANLoss(MeanSquare())
    weights = (loss.l1_weight, loss.perceptual_weight, loss.slice_weight, loss.volume_weight)
    assert (*weights, loss.feature_matching_weight) == (4, 4, 1, 1, 4)


def test_reconstruction_terms_are_weighted_l1_of_volumes_and_perceptual_loss_of_slices():
    fake, real = torch.zeros(1, 1, 2, 3, 4), torch.full((1, 1, 2, 3, 4), 0.5)
    terms = VQGANLoss(MeanSquare(), **WEIGHTS).reconstruction(fake, real, fake[..., 0], real[..., 0] * 4)
    assert {name: term.item() for name, term in terms.items()} == {"l1": 2 * 0.5, "perceptual": 3 * 4.0}


def test_adversarial_terms_are_weighted_verdicts_and_feature_matching_of_both_discriminators():
    terms = VQGANLoss(MeanSquare(), **WEIGHTS).adversarial(verdict(0.5, -2, 1, 4), verdict(9, 9, 2, 2))
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(
        {"slice_adversarial": 5 * -0.5, "volume_adversarial": 7 * 2.0, "feature_matching": 11 * 2 * (1 + 2) * 4 / 2}
    )


def test_discriminator_terms_are_weighted_hinge_losses():
    terms = VQGANLoss(MeanSquare(), **WEIGHTS).discriminators(fake=verdict(0.5, -2), real=verdict(3, -1))
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(
        {"slice_discriminator": 5 * 1.5 / 2, "volume_discriminator": 7 * 2.0 / 2}
    )


def test_held_out_objective_takes_evenly_spaced_slices_and_no_chance():
    depth = 19
    real = torch.zeros(2, 3, 4, 5, depth)
    fake = torch.zeros_like(real)
    fake[..., 9] = 1.0  # the middle slice, of three at 4.5, 9 and 13.5
    loss = VQGANLoss(MeanSquare(), **WEIGHTS)
    value = loss.held_out(fake, real, num_slices=3)
    assert value.item() == pytest.approx(2 / depth + 3 / 3)
    assert loss.held_out(fake, real, num_slices=2).item() == pytest.approx(2 / depth)  # at 6 and 12
    assert torch.equal(value, loss.held_out(fake, real, num_slices=3))


def test_held_out_slices_keep_channels_and_axes():
    seen = []

    class Look(nn.Module):
        def forward(self, input: Tensor, target: Tensor) -> Tensor:
            seen.append(target)
            return input.new_zeros(())

    real = torch.randn(2, 3, 4, 5, 6)
    VQGANLoss(Look()).held_out(real, real, num_slices=4)
    expected = torch.stack([real[b, ..., d] for b in range(2) for d in (1, 2, 3, 4)])
    assert torch.equal(seen[0], expected)
