"""Which of the trained timesteps a sampler with fewer steps visits.

Evenly in time is what Song et al., "Denoising Diffusion Implicit Models", ICLR 2021 do; evenly in the logarithm of the
signal-to-noise ratio is what Lu et al., "DPM-Solver", NeurIPS 2022, section 3.3, advise for solvers of higher order, whose
error is a power of the step in that variable.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["evenly_in_log_snr", "evenly_in_time", "half_log_snr"]


def half_log_snr(alphas_cumprod: Tensor) -> Tensor:
    """log(signal / noise), both as standard deviations: half the log-SNR."""
    return 0.5 * (alphas_cumprod.log() - (1.0 - alphas_cumprod).log())


def evenly_in_time(alphas_cumprod: Tensor, steps: int) -> Tensor:
    """``steps`` timesteps from the last, T - 1, to 0, as evenly as whole numbers allow, (steps,) int64.

    Args:
        alphas_cumprod: (T,), of which only the length counts.
        steps: how many, in [1, T]; a single one is T - 1.
    """
    return torch.linspace(len(alphas_cumprod) - 1, 0, steps).round().long()


def evenly_in_log_snr(alphas_cumprod: Tensor, steps: int) -> Tensor:
    """``steps`` timesteps from the last, T - 1, to 0, as evenly in log-SNR as whole numbers allow, (steps,) int64.

    Each step takes its even share of what is left to go, to the nearest timestep; at least one, and so that enough are
    left. Where one timestep is more than the share (the first of the cosine schedule, which is a third of the whole way),
    the later ones make up for it.

    Args:
        alphas_cumprod: (T,), falling, between 0 and 1.
        steps: how many, in [1, T]; a single one is T - 1.

    Raises:
        ValueError: ``alphas_cumprod`` does not fall or reaches 0 or 1, where the log-SNR is infinite.
    """
    snr = half_log_snr(alphas_cumprod.detach().cpu().double())
    if not (snr.isfinite().all() and (snr.diff() < 0).all()):
        low, high = float(alphas_cumprod.min()), float(alphas_cumprod.max())
        raise ValueError(f"expected alphas_cumprod to fall between 1 and 0, both excluded; got {low:g} to {high:g}")
    times = [len(snr) - 1]
    for left in range(steps - 1, 0, -1):
        wanted = snr[times[-1]] + (snr[0] - snr[times[-1]]) / left
        nearest = int((snr - wanted).abs().argmin())
        times.append(min(max(nearest, left - 1), times[-1] - 1))
    return torch.tensor(times)
