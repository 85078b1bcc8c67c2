"""Codebooks in a known state, and how to compare them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medical_diffusion_components.networks.codebook import EMACodebook

STATE = ("codes", "ema_counts", "ema_sums", "initialised")


def volume(rows: Tensor) -> Tensor:
    """``(N, C)`` to ``(1, C, N, 1, 1)``."""
    return rows.t().reshape(1, rows.shape[1], rows.shape[0], 1, 1)


def started(codes: Tensor, count: float = 10.0, **settings: float) -> EMACodebook:
    """A codebook in the midst of training, with the given codes, each of the given running count."""
    book = EMACodebook(codes.shape[0], codes.shape[1], **settings)
    book.codes.copy_(codes)
    book.ema_counts.fill_(count)
    book.ema_sums.copy_(codes * count)
    book.initialised.fill_(True)
    return book


def snapshot(book: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in book.state_dict().items()}


def same_state(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
