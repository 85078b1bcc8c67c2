"""The objective of the second stage: how far a prediction is from what the denoiser should have said.

Ho et al., "Denoising Diffusion Probabilistic Models", NeurIPS 2020, take the squared error; Khader et al. 2023 the
absolute one.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["DenoisingLoss"]

_NORMS = {"l1": F.l1_loss, "mse": F.mse_loss}


class DenoisingLoss(nn.Module):
    """Mean over the batch of |pred - target| (``l1``, the paper's) or (pred - target)^2 (``mse``).

    Args:
        norm: ``"l1"`` or ``"mse"``.

    Shape:
        pred, target: (B, C, h, w, d) -> scalar

    Raises:
        ValueError: another norm.
    """

    def __init__(self, norm: str = "l1") -> None:
        super().__init__()
        if norm not in _NORMS:
            raise ValueError(f'the norm of the loss must be "l1" or "mse", got {norm!r}')
        self.norm = norm

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        return _NORMS[self.norm](pred, target)
