"""Feature matching: a reconstruction should excite the discriminator's layers as the real volume does.

Salimans et al., "Improved Techniques for Training GANs", NeurIPS 2016; per layer as in Wang et al., CVPR 2018.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from medical_diffusion_components.losses.terms import total

__all__ = ["feature_matching_loss"]


def feature_matching_loss(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """Sum over the L layers of 4/L E|D_l(x) - D_l(G)|: for the usual four, the plain sum. Real features carry no gradient.

    The factor is that of Wang et al. and Ge et al., to which the weight 4 of Khader et al. refers.

    Raises:
        ValueError: the two lists differ in length or are empty.
    """
    if len(real) != len(fake) or not real:
        raise ValueError(f"expected as many real as fake feature maps, at least one, got {len(real)} and {len(fake)}")
    return 4 / len(real) * total(F.l1_loss(f, r.detach()) for r, f in zip(real, fake))
