"""Holdout share of latents: cheap enough for every validation of a training.

The audit's encoder would take minutes. Here latents are averaged in blocks and whitened by the principal components of
training and held-out latents together, as many of each: which of the two a latent belongs to cannot matter then, so that
without copies the share is 0.5 on average, whatever the components are like.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from medical_diffusion_components.audit.proximity import HoldoutShare, holdout_share

__all__ = ["latent_holdout_share"]

SIDE = 8  # blocks per axis, at most
COMPONENTS = 60  # at most; fewer of few latents
LATENTS_PER_COMPONENT = 4


def latent_holdout_share(samples: Tensor, training: Tensor, held_out: Tensor) -> HoldoutShare:
    """Share of sampled latents that are nearer to a training than to a held-out latent.

    Args:
        samples: (n, C, h, w, d).
        training, held_out: as many of each, every one plain and in its other views, (m, views, C, h, w, d).

    Raises:
        ValueError: sets of unlike sizes, or of fewer than two latents.
    """
    if training.shape != held_out.shape or len(training) < 2:
        raise ValueError(
            f"expected two or more training and as many held-out latents, got {tuple(training.shape)} and "
            f"{tuple(held_out.shape)}"
        )
    inside = torch.cat([_blocks(training[:, 0]), _blocks(held_out[:, 0])])  # (2 m, F)
    mean = inside.mean(dim=0)
    kept = max(1, min(COMPONENTS, len(inside) // LATENTS_PER_COMPONENT))
    _, spread, axes = torch.linalg.svd(inside - mean, full_matrices=False)
    whitening = axes[:kept].T / spread[:kept].clamp(min=1e-12)  # (F, kept)

    def placed(latents: Tensor) -> Tensor:
        return (_blocks(latents) - mean) @ whitening

    points = placed(samples)
    nearest = [
        -torch.stack([torch.cdist(points, placed(view)) for view in side.unbind(1)]).amin(dim=0)  # (n, m)
        for side in (training, held_out)
    ]
    return holdout_share(nearest[0].numpy(), nearest[1].numpy(), redraws=1)


def _blocks(latents: Tensor) -> Tensor:
    """(n, C, h, w, d) -> (n, F), float64."""
    h, w, d = (min(SIDE, side) for side in latents.shape[2:])
    return F.adaptive_avg_pool3d(latents.double(), (h, w, d)).flatten(1)
