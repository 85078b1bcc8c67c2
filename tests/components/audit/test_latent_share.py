"""The holdout share of latents: half without copies, more with them, and no alarm where samples are merely alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from medical_diffusion_components.audit import latent_holdout_share

SHAPE, COUNT = (2, 6, 5, 4), 30


def latents(seed: int, count: int) -> torch.Tensor:
    """Smooth random latents, plain and mirrored, (count, 2, C, h, w, d)."""
    noise = np.random.default_rng(seed).normal(size=(count, *SHAPE))
    plain = torch.from_numpy(gaussian_filter(noise, (0, 0, 1, 1, 1))).float() * 4
    return torch.stack([plain, plain.flip(2)], dim=1)


def shares(samples_of, redraws: int = 40) -> np.ndarray:
    found = []
    for seed in range(redraws):
        training, held_out = latents(3 * seed, COUNT), latents(3 * seed + 1, COUNT)
        samples = samples_of(training, latents(3 * seed + 2, 16)[:, 0])
        found.append(latent_holdout_share(samples, training, held_out).share)
    return np.array(found)


def test_of_fresh_latents_half_are_nearer_to_training_latents() -> None:
    found = shares(lambda training, fresh: fresh)
    assert abs(found.mean() - 0.5) < 3 * found.std(ddof=1) / len(found) ** 0.5
    assert found.std(ddof=1) < 0.2


@pytest.mark.parametrize("view", [0, 1], ids=["plain", "mirrored"])
def test_noisy_copies_are_nearer_to_training_latents(view: int) -> None:
    found = shares(lambda training, fresh: training[:16, view] + 0.3 * fresh, redraws=5)
    assert found.min() > 0.9


def test_latents_between_all_others_are_no_copies() -> None:
    found = shares(lambda training, fresh: 0.3 * fresh)
    assert abs(found.mean() - 0.5) < 0.1


def test_the_sets_must_be_of_one_size() -> None:
    with pytest.raises(ValueError, match="as many held-out latents"):
        latent_holdout_share(latents(0, 4)[:, 0], latents(1, 5), latents(2, 4))
