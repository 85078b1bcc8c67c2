"""Where bfloat16 pays."""

from __future__ import annotations

import torch

__all__ = ["fast_bfloat16"]


def fast_bfloat16(device: torch.device | str) -> bool:
    """Whether ``device`` multiplies bfloat16 matrices in hardware: GPUs from Ampere on, CPUs with AMX.

    Elsewhere bfloat16 is emulated or no faster than float32, and training stays in float32.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.is_available() and torch.cuda.get_device_capability(device)[0] >= 8
    return torch.device(device).type == "cpu" and bool(torch.cpu.get_capabilities().get("amx_bf16", False))
