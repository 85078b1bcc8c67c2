"""The objective of inpainting: L1 and multi-scale structural similarity, with every weight a knob.

Khader et al., "Denoising diffusion probabilistic models for 3D medical image generation", Scientific Reports 13, 7303
(2023), name the two terms; Zhao et al., "Loss functions for image restoration with neural networks", IEEE TCI 2017, are
where they were first put together.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from medical_diffusion_components.losses.ms_ssim import MSSSIMLoss

__all__ = ["InpaintingLoss", "InpaintingTerms"]


class InpaintingTerms(NamedTuple):
    """Scalars; ``loss`` is what the optimiser sees, the other ones are unweighted."""

    loss: Tensor
    l1: Tensor  # mean absolute error of all voxels
    l1_masked: Tensor  # of the voxels that were removed; 0 if there are none
    l1_rest: Tensor  # of the voxels that were kept; 0 if there are none
    ms_ssim_loss: Tensor  # 1 - MS-SSIM of the whole volume


@dataclass
class InpaintingLoss:
    r"""loss = l1_weight x mean(v |pred - target|) + ms_ssim_weight x (1 - MS-SSIM(pred, target)).

    The mean is over all voxels. v is 1 where the mask is 1 (removed) and ``rest_weight`` where it is 0 (kept): with the
    default 1 the whole volume counts equally, with 0 the removed voxels alone enter the first term. MS-SSIM always compares
    whole volumes, since its windows reach across the border of a patch.

    ``l1_masked`` and ``l1_rest`` are for the report; they enter the loss only as parts of the mean above.

    Args:
        l1_weight: weight of the mean absolute error.
        ms_ssim_weight: weight of 1 - MS-SSIM.
        rest_weight: weight of a kept voxel in the mean absolute error, against 1 of a removed one.
        ms_ssim: the loss in the second term.

    Shape:
        pred, target (B, C, H, W, D), mask (B, 1, H, W, D) of 0 and 1

    Raises:
        ValueError: a negative weight, or only zeros.
    """

    l1_weight: float = 1.0
    ms_ssim_weight: float = 1.0
    rest_weight: float = 1.0
    ms_ssim: MSSSIMLoss = field(default_factory=MSSSIMLoss)

    def __post_init__(self) -> None:
        weights = (self.l1_weight, self.ms_ssim_weight, self.rest_weight)
        if min(weights) < 0 or self.l1_weight == self.ms_ssim_weight == 0:
            raise ValueError(f"weights must be at least 0, and one of the two terms must count; got {weights}")

    def __call__(self, pred: Tensor, target: Tensor, mask: Tensor) -> InpaintingTerms:
        """Compare ``pred`` and ``target``, in float32."""
        error = (pred.float() - target.float()).abs()
        mask = mask.to(error.dtype).expand_as(error)
        removed, kept = (error * mask).sum(), (error * (1 - mask)).sum()
        num_removed = mask.sum()
        l1_loss = (removed + self.rest_weight * kept) / error.numel()
        ms_ssim_loss = self.ms_ssim(pred, target)
        return InpaintingTerms(
            loss=self.l1_weight * l1_loss + self.ms_ssim_weight * ms_ssim_loss,
            l1=(removed + kept) / error.numel(),
            l1_masked=removed / num_removed.clamp(min=1),
            l1_rest=kept / (error.numel() - num_removed).clamp(min=1),
            ms_ssim_loss=ms_ssim_loss,
        )
