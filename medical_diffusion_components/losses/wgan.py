"""The objective of alpha-WGAN with a gradient penalty.

Kwon et al., MICCAI 2019; Arjovsky et al., "Wasserstein GAN", ICML 2017; Gulrajani et al., "Improved Training of
Wasserstein GANs", NeurIPS 2017 (equation 3).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["AlphaWGANLoss", "gradient_penalty"]


def gradient_penalty(discriminator: nn.Module, real: Tensor, fake: Tensor, share: Tensor) -> Tensor:
    """Mean of (|gradient of the discriminator| - 1)^2 at points between real and generated ones.

    Args:
        discriminator: (B, ...) -> (B,).
        real: (B, ...).
        fake: (B, ...), detached.
        share: (B,) in [0, 1], how much of each point is real.

    Returns:
        A scalar that can be differentiated for the discriminator's parameters.
    """
    share = share.reshape(-1, *[1] * (real.dim() - 1))
    between = (share * real + (1 - share) * fake).requires_grad_()
    [gradient] = torch.autograd.grad(discriminator(between).sum(), between, create_graph=True)
    return (gradient.flatten(1).norm(dim=1) - 1).square().mean()


@dataclass
class AlphaWGANLoss:
    """The terms of the three steps of alpha-WGAN; every method gives weighted terms by name, to be summed.

    With D the discriminator of volumes, C that of codes, E the encoder, G the generator, x a volume and z a code drawn
    from the standard normal distribution:

        E and G: -D(G(E(x))) - D(G(z)) + w_r |G(E(x)) - x| - w_c C(E(x))
        D: -2 D(x) + D(G(E(x))) + D(G(z)) + w_p P(x, G(z)) + w_p P(x, G(E(x)))
        C: -C(z) + C(E(x)) + w_p P(z, E(x))

    Args:
        reconstruction_weight: w_r, of the mean absolute difference.
        penalty_weight: w_p, of the gradient penalties.
        code_weight: w_c; 1 as in the published code, 0 as in the paper's objective of the generator.
    """

    reconstruction_weight: float = 10.0
    penalty_weight: float = 10.0
    code_weight: float = 1.0

    def generator(
        self, reconstruction: Tensor, real: Tensor, reconstructed_score: Tensor, drawn_score: Tensor, code_score: Tensor
    ) -> dict[str, Tensor]:
        """Terms of encoder and generator.

        Args:
            reconstruction: G(E(x)), (B, C, H, W, D).
            real: x.
            reconstructed_score: D(G(E(x))), (B,).
            drawn_score: D(G(z)), (B,).
            code_score: C(E(x)), (B,).
        """
        return {
            "l1": self.reconstruction_weight * F.l1_loss(reconstruction, real),
            "adversarial": -reconstructed_score.mean() - drawn_score.mean(),
            "code_adversarial": -self.code_weight * code_score.mean(),
        }

    def discriminator(
        self, real_score: Tensor, reconstructed_score: Tensor, drawn_score: Tensor, penalty: Tensor
    ) -> dict[str, Tensor]:
        """Terms of the discriminator of volumes; scores (B,), ``penalty`` the sum of both."""
        return {
            "wasserstein": reconstructed_score.mean() + drawn_score.mean() - 2 * real_score.mean(),
            "penalty": self.penalty_weight * penalty,
        }

    def code_discriminator(self, drawn_score: Tensor, encoded_score: Tensor, penalty: Tensor) -> dict[str, Tensor]:
        """Terms of the discriminator of codes; scores (B,)."""
        return {
            "code_wasserstein": encoded_score.mean() - drawn_score.mean(),
            "code_penalty": self.penalty_weight * penalty,
        }
