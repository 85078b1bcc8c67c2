"""Hinge loss between generator and discriminator, and when it counts.

Lim and Ye, "Geometric GAN", 2017; the late start of the adversarial terms is that of Esser et al., CVPR 2021.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

__all__ = ["AdversarialSchedule", "hinge_discriminator_loss", "hinge_generator_loss"]


def hinge_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """L_D = (E[max(0, 1 - D(x))] + E[max(0, 1 + D(G))]) / 2: zero once real is above 1 and fake below -1."""
    return 0.5 * (F.relu(1.0 - real_logits).mean() + F.relu(1.0 + fake_logits).mean())


def hinge_generator_loss(fake_logits: Tensor) -> Tensor:
    """L_G = -E[D(G)]."""
    return -fake_logits.mean()


@dataclass(frozen=True)
class AdversarialSchedule:
    """From which batch on the discriminators train and the generator listens to them, counted in batches.

    A generator that suddenly follows an untrained discriminator collapses. So the discriminators train
    alone for the last ``discriminator_warmup`` batches before ``start``, and the generator's terms then grow linearly
    over ``ramp`` batches.

    Args:
        start: first batch in which the generator's adversarial terms count (5,000 in the paper).
        discriminator_warmup: batches before ``start`` in which the discriminators already train.
        ramp: batches from ``start`` until the terms have their whole weight.

    Raises:
        ValueError: a negative number.
    """

    start: int = 5000
    discriminator_warmup: int = 500
    ramp: int = 500

    def __post_init__(self) -> None:
        if min(self.start, self.discriminator_warmup, self.ramp) < 0:
            raise ValueError(f"start, discriminator_warmup and ramp are numbers of batches, at least 0, got {self}")

    def discriminators_train(self, batch: int) -> bool:
        """Whether the discriminators train in ``batch`` (counted from 0)."""
        return batch >= self.start - self.discriminator_warmup

    @property
    def full_after(self) -> int:
        """Batches after which the generator has been trained once with the terms' whole weight."""
        return self.start + max(self.ramp, 1)

    def generator_weight(self, batch: int) -> float:
        """Factor in [0, 1] of the generator's adversarial terms in ``batch`` (counted from 0)."""
        return min(1.0, max(0.0, (batch - self.start + 1) / max(self.ramp, 1)))
