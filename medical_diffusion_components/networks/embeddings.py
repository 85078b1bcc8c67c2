"""What the denoiser is given besides its input, as vectors: the diffusion timestep and the conditions."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ConditionEmbedding", "TimeEmbedding"]


class TimeEmbedding(nn.Module):
    """Sinusoidal embedding of the diffusion timestep and a small network on it (Ho et al. 2020).

    Shape:
        ``(B,)`` -> ``(B, 4 * channels)``
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.linear1 = nn.Linear(channels, 4 * channels)
        self.linear2 = nn.Linear(4 * channels, 4 * channels)

    def forward(self, timesteps: Tensor) -> Tensor:
        half = self.channels // 2
        dtype = torch.promote_types(self.linear1.weight.dtype, torch.float32)
        index = torch.arange(half, device=timesteps.device, dtype=dtype)
        angle = timesteps.to(dtype)[:, None] * torch.exp(index * (-math.log(10000.0) / (half - 1)))
        waves = torch.cat((angle.sin(), angle.cos()), dim=1).to(self.linear1.weight.dtype)
        return self.linear2(F.gelu(self.linear1(waves)))


class ConditionEmbedding(nn.Module):
    """What one condition adds to the time embedding: nothing at first, since its last layer begins at zero.

    A continuous value goes through a small network, a category has a row of a table, and what is missing has a learned
    vector of its own in their place.

    Args:
        categories: how many the variable has; 0 for a continuous one.
        channels: of the time embedding.

    Shape:
        ``(B,)``, a scaled value or the index of a category, NaN where missing -> ``(B, channels)``
    """

    def __init__(self, categories: int, channels: int) -> None:
        super().__init__()
        self.categories = categories
        self.values = nn.Embedding(categories, channels) if categories else nn.Linear(1, channels)
        self.missing = nn.Parameter(torch.randn(channels))
        self.last = nn.Linear(channels, channels)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, values: Tensor) -> Tensor:
        known = values.nan_to_num(0.0)  # a NaN that is masked afterwards would still reach the gradients
        h = self.values(known.long() if self.categories else known[:, None].to(self.last.weight.dtype))
        h = torch.where(values.isnan()[:, None], self.missing, h)
        return self.last(F.silu(h))
