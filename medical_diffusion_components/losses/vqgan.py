"""The objective of the first stage, with every weight a knob.

Esser et al., CVPR 2021, with a slice-wise and a volume discriminator as in Ge et al., ECCV 2022, and the weights of
Khader et al. 2023: L1 x4, perceptual x4, commitment, both adversarial terms x1, feature matching x4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from medical_diffusion_components.losses.adversarial import hinge_discriminator_loss, hinge_generator_loss
from medical_diffusion_components.losses.feature_matching import feature_matching_loss
from medical_diffusion_components.losses.terms import total
from medical_diffusion_components.networks.discriminators import DiscriminatorOutput

__all__ = ["DiscriminatorPair", "VQGANLoss"]


class DiscriminatorPair(NamedTuple):
    """What the two discriminators say of the same volumes."""

    slices: DiscriminatorOutput
    volumes: DiscriminatorOutput


@dataclass
class VQGANLoss:
    """Weighted terms of generator and discriminators; their sums are what the optimisers see.

    Args:
        perceptual: callable ``(input, target) -> scalar`` on slices (B, C, H, W).
        l1_weight: weight of the mean absolute error.
        perceptual_weight: weight of the perceptual loss on one random slice per volume.
        slice_weight: weight of the slice discriminator's verdict.
        volume_weight: weight of the volume discriminator's verdict.
        feature_matching_weight: weight of the feature matching, slice and volume discriminator together.
    """

    perceptual: nn.Module
    l1_weight: float = 4.0
    perceptual_weight: float = 4.0
    slice_weight: float = 1.0
    volume_weight: float = 1.0
    feature_matching_weight: float = 4.0

    def reconstruction(self, fake: Tensor, real: Tensor, fake_slice: Tensor, real_slice: Tensor) -> dict[str, Tensor]:
        """Terms that compare reconstruction and image: volumes (B, C, H, W, D), slices (B, C, H, W)."""
        return {
            "l1": self.l1_weight * F.l1_loss(fake, real),
            "perceptual": self.perceptual_weight * self.perceptual(fake_slice, real_slice),
        }

    def held_out(self, fake: Tensor, real: Tensor, num_slices: int = 8) -> Tensor:
        """The reconstruction terms on a validation batch, with evenly spaced slices in place of random ones."""
        depths = torch.linspace(0, fake.shape[-1] - 1, num_slices + 2)[1:-1].round().long().to(fake.device)
        fake_slices, real_slices = (
            rearrange(v.index_select(-1, depths), "b c h w d -> (b d) c h w") for v in (fake, real)
        )
        return total(self.reconstruction(fake, real, fake_slices, real_slices).values())

    def adversarial(self, fake: DiscriminatorPair, real: DiscriminatorPair) -> dict[str, Tensor]:
        """Terms that the discriminators give the generator."""
        matching = feature_matching_loss(real.slices.features, fake.slices.features) + feature_matching_loss(
            real.volumes.features, fake.volumes.features
        )
        return {
            "slice_adversarial": self.slice_weight * hinge_generator_loss(fake.slices.logits),
            "volume_adversarial": self.volume_weight * hinge_generator_loss(fake.volumes.logits),
            "feature_matching": self.feature_matching_weight * matching,
        }

    def discriminators(self, fake: DiscriminatorPair, real: DiscriminatorPair) -> dict[str, Tensor]:
        """Terms of the discriminators' own step."""
        return {
            "slice_discriminator": self.slice_weight * hinge_discriminator_loss(real.slices.logits, fake.slices.logits),
            "volume_discriminator": self.volume_weight
            * hinge_discriminator_loss(real.volumes.logits, fake.volumes.logits),
        }
