"""Whether the model itself, not its samples, knows its training volumes from held-out ones.

A denoiser that has learnt volumes by heart denoises them better than others of their kind: the loss at a few timesteps
ranks volumes, and the area under the curve of training against held-out volumes says how well it does (membership
inference; Carlini et al., "Extracting Training Data from Diffusion Models", USENIX Security 2023, and Duan et al., "Are
Diffusion Models Vulnerable to Membership Inference Attacks?", ICML 2023). Proximity of samples alone is known to miss
such leakage. 0.5 is chance.

Standard errors: DeLong et al., "Comparing the Areas under Two or More Correlated Receiver Operating Characteristic
Curves", Biometrics 44, 1988; where a patient has several volumes, as sums over patients: Obuchowski, "Nonparametric
Analysis of Clustered ROC Curve Data", Biometrics 53, 1997.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor
from tqdm import tqdm

from medical_diffusion_components.audit.volumes import Preprocessing, case_key, kept
from medical_diffusion_components.chance import counter_normal
from medical_diffusion_components.data.conditions import Conditions
from medical_diffusion_components.diffusion import LatentDiffusionGenerator
from medical_diffusion_components.metrics import Estimate

__all__ = [
    "Membership",
    "area_under_curve",
    "denoising_losses",
    "membership",
    "membership_scores",
    "true_positives",
]

TIMES = (0.07, 0.2, 0.4, 0.6, 0.8)  # shares of the schedule at which the denoiser is asked
VERSION = 3  # of what is kept: any change of the losses counts it up
ENOUGH_FOR_RATES = 500  # held-out volumes from which a rate of 1 % false positives means something


class Membership(NamedTuple):
    """How well training volumes can be told from held-out ones."""

    denoiser: Estimate  # area under the curve of the denoiser's loss
    first_stage: Estimate  # of the reconstruction error of the first stage
    training: int  # volumes
    held_out: int
    true_positives: float | None  # at 1 % false positives; None with fewer than 500 held-out volumes


def area_under_curve(
    positives: np.ndarray, negatives: np.ndarray, patients: tuple[Sequence[str], Sequence[str]] | None = None
) -> Estimate:
    """Probability that a positive scores above a negative, ties counted half, with its standard error.

    Args:
        positives, negatives: scores (n,) and (m,), n, m > 1.
        patients: of the positives, (n,), and of the negatives, (m,), none of them on both sides; None: every score
            has a patient of its own.

    Raises:
        ValueError: fewer than two scores or patients on a side, or scores that are not finite.
    """
    x, y = np.asarray(positives, dtype=np.float64), np.asarray(negatives, dtype=np.float64)
    if min(len(x), len(y)) < 2 or not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError(f"expected two or more finite scores on each side, got {len(x)} and {len(y)}")
    ranks = rankdata(np.concatenate([x, y]))
    # placements: the share of the other side below each score
    over_negatives = (ranks[: len(x)] - rankdata(x)) / len(y)  # (n,)
    under_positives = 1 - (ranks[len(x) :] - rankdata(y)) / len(x)  # (m,)
    groups = patients or (np.arange(len(x)), np.arange(len(y)))
    variance = sum(map(_variance_of_mean, (over_negatives, under_positives), groups))
    return Estimate(float(over_negatives.mean()), float(np.sqrt(variance)))


def _variance_of_mean(values: np.ndarray, patients: Sequence[str] | np.ndarray) -> float:
    """Of ``values`` (n,), those of one patient correlated in whatever way."""
    names, place = np.unique(patients, return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"expected volumes of two or more patients on each side, got those of {len(names)}")
    sums = np.bincount(place, values - values.mean())
    return float(len(names) / (len(names) - 1) * (sums**2).sum() / len(values) ** 2)


def membership_scores(training_losses: np.ndarray, held_out_losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How well each volume is denoised: losses in units of the held-out ones at each timestep, averaged, negative.

    Args:
        training_losses, held_out_losses: (n, T) and (m, T).

    Returns:
        (n,) and (m,), higher for what is denoised better.
    """
    mean, deviation = held_out_losses.mean(axis=0), held_out_losses.std(axis=0) + 1e-12
    members, others = (-((losses - mean) / deviation).mean(axis=1) for losses in (training_losses, held_out_losses))
    return members, others


def true_positives(members: np.ndarray, others: np.ndarray, false_positives: float = 0.01) -> float:
    """Share of members that score above all but a share of ``false_positives`` of the others."""
    return float((members > np.quantile(others, 1 - false_positives)).mean())


@torch.no_grad()
def denoising_losses(
    generator: LatentDiffusionGenerator,
    latents: Tensor,
    seed: int = 0,
    batch_size: int = 8,
    conditions: Tensor | None = None,
) -> np.ndarray:
    """Mean absolute error of the denoiser's prediction at five timesteps, the same noise for every latent, (N, 5).

    Args:
        generator: its denoiser, schedule and kind of prediction, as its weights bring them.
        latents: of the first stage, (N, C, h, w, d).
        seed: of the noise.
        batch_size: latents at once.
        conditions: of each latent, (N, V), NaN where missing; None: the denoiser is asked without.
    """
    generator.eval()
    alphas_cumprod, prediction = generator.alphas_cumprod, int(generator.prediction)
    device, total = alphas_cumprod.device, len(alphas_cumprod)
    losses = np.empty((len(latents), len(TIMES)))
    for column, share in enumerate(TIMES):
        timestep = min(int(share * total), total - 1)
        a = alphas_cumprod[timestep]
        noise = counter_normal(torch.tensor([seed], device=device), column, latents[:1].to(device))
        for start in range(0, len(latents), batch_size):
            clean = generator.latent_scaling(latents[start : start + batch_size].to(device))
            noisy = a.sqrt() * clean + (1 - a).sqrt() * noise
            if prediction == 3:  # a flow sees (1 - t) x + t e
                noisy = noisy / (a.sqrt() + (1 - a).sqrt())
            asked = [] if conditions is None else [conditions[start : start + len(clean)].to(device)]
            predicted = generator.denoiser(noisy, torch.full((len(clean),), timestep, device=device), *asked).float()
            velocity = a.sqrt() * noise - (1 - a).sqrt() * clean
            target = (noise.expand_as(clean), clean, velocity, noise - clean)[prediction]
            losses[start : start + len(clean), column] = (predicted - target).abs().flatten(1).mean(1).cpu().numpy()
    return losses


def membership(
    generator: LatentDiffusionGenerator,
    weights_sha256: str,
    training: Sequence[dict],
    held_out: Sequence[dict],
    preprocessing: Preprocessing,
    reconstruct: Callable[[Sequence[dict]], list[dict]],
    folder: str | Path,
    conditions: Conditions | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> Membership:
    """Tell training from held-out volumes by the losses of denoiser and first stage.

    Args:
        generator: with its weights loaded.
        weights_sha256: of their file.
        training, held_out: cases; a random choice of the training cases will do.
        preprocessing: of both.
        reconstruct: sends cases through the generator's first stage and returns those of the written files.
        folder: losses are kept there, a file per volume, and taken from there.
        conditions: those that the generator was trained with; each volume is then denoised under its own.
        device: where to compute.
        seed: of the noise.

    Raises:
        ValueError: a declared condition that no training volume or no held-out volume has a value of.
    """
    generator = generator.to(device).eval()

    def measured(case: Mapping[str, Any], again: Mapping[str, Any], asked: Tensor | None) -> np.ndarray:
        image, decoded = preprocessing.volume(case), preprocessing.as_written(again)
        with torch.no_grad():
            latent = generator.first_stage.encode_stage_2_inputs(image.to(device)[None])
        losses = denoising_losses(generator, latent.float(), seed, conditions=asked)[0]
        return np.append(losses, float((decoded - image).abs().mean()))  # (6,)

    def measured_side(cases: Sequence[dict], what: str) -> tuple[np.ndarray, np.ndarray]:
        """Losses of the denoiser, (N, 5), and errors of the first stage, (N,)."""
        rows = conditions.of_cases(cases) if conditions else [None] * len(cases)
        found, decoded = [], reconstruct(cases)
        for case, again, row in zip(tqdm(cases, desc=f"membership, {what}", unit="volume"), decoded, rows):
            asked = None if row is None else row[None]
            said = [case_key(case, preprocessing), weights_sha256, VERSION, seed, None if row is None else row.tolist()]
            found.append(kept(Path(folder), said, partial(measured, case, again, asked)))
        table = np.stack(found)
        return table[:, :-1], table[:, -1]

    losses, errors = measured_side(training, "training volumes")
    other_losses, other_errors = measured_side(held_out, "held-out volumes")
    scores = membership_scores(losses, other_losses)
    patients = ([case["patient_id"] for case in training], [case["patient_id"] for case in held_out])
    return Membership(
        denoiser=area_under_curve(*scores, patients),
        first_stage=area_under_curve(-errors, -other_errors, patients),
        training=len(training),
        held_out=len(held_out),
        true_positives=true_positives(*scores) if len(held_out) >= ENOUGH_FOR_RATES else None,
    )
