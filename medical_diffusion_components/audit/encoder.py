"""A small network that tells one subject from another, trained on the training volumes themselves.

Contrastive learning (Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020)
on volumes, as Dar et al., "Unconditional latent diffusion models memorize patient imaging data", Nature Biomedical
Engineering, 2025, use it to find copies. Features of a network for images do not do: they miss copies that went
through a first stage, and noisy and blurred ones.

The encoder sees training volumes alone, as they are and through the generator's first stage, which is how a generator
gives them back. Held-out and synthetic volumes are then treated the same by it, which the conformal test needs.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from medical_diffusion_components.audit.views import RandomViews, standardise
from medical_diffusion_components.chance import derive_seed, seeded, torch_generator
from medical_diffusion_components.files import write_atomically
from medical_diffusion_components.weights import load_tensors, read_state, save_tensors

__all__ = ["ContrastiveEncoder", "ContrastiveTraining", "embed", "nt_xent", "trained_encoder"]

logger = logging.getLogger(__name__)

# Changing the network, the views or the training makes other encoders: count up, so that cached ones are not taken.
ENCODER_VERSION = 2


class ContrastiveEncoder(nn.Module):
    """Four strided convolutions and a linear layer: a reduced volume to a point on the unit sphere.

    Args:
        shape: (C, h, w, d) of the reduced volumes.
        features: F.
        widths: channels after each convolution.

    Shape:
        (B, C, h, w, d), standardised -> (B, F) of length 1
    """

    def __init__(self, shape: tuple[int, ...], features: int = 64, widths: tuple[int, ...] = (12, 24, 48, 96)) -> None:
        super().__init__()
        channels = shape[0]
        layers: list[nn.Module] = []
        for width in widths:
            layers += [nn.Conv3d(channels, width, 3, stride=2, padding=1), nn.GroupNorm(4, width), nn.SiLU()]
            channels = width
        self.layers = nn.Sequential(*layers, nn.Flatten())
        with torch.no_grad():
            length = self.layers(torch.zeros(1, *shape)).shape[1]
        self.project = nn.Linear(length, features)

    def forward(self, volumes: Tensor) -> Tensor:
        return functional.normalize(self.project(self.layers(volumes)), dim=1)


class ContrastiveTraining(NamedTuple):
    """How long and how the encoder is trained."""

    steps: int = 1000
    volumes_per_step: int = 32  # or all, where there are fewer
    learning_rate: float = 4.0e-3  # the highest of a one-cycle schedule
    temperature: float = 0.1
    seed: int = 0


def nt_xent(one: Tensor, other: Tensor, temperature: float) -> Tensor:
    """Normalised temperature-scaled cross-entropy (Chen et al., equation 1): the two views of a volume find each other.

    Args:
        one, other: (B, F) of length 1, row by row views of the same volumes.
        temperature: above 0; the lower, the more the nearest of the others count.
    """
    both = torch.cat([one, other])  # (2B, F)
    logits = both @ both.T / temperature
    logits = logits.masked_fill(torch.eye(len(both), dtype=torch.bool, device=both.device), float("-inf"))
    partner = torch.arange(len(both), device=both.device).roll(len(one))
    return functional.cross_entropy(logits, partner)


def trained_encoder(
    volumes: Tensor,
    made_from: Mapping[str, Any],
    folder: str | Path,
    views: RandomViews,
    training: ContrastiveTraining | None = None,
    device: torch.device | str = "cpu",
    through: Tensor | None = None,
) -> tuple[ContrastiveEncoder, str]:
    """The encoder of these volumes, trained or from the cache.

    An interrupted training resumes where it stopped, with the result that it would have had.

    Args:
        volumes: the generator's training volumes, reduced, (N, C, h, w, d) in [-1, 1]; N at least 2.
        made_from: what identifies them (their hash, the preprocessing); with the settings it is the cache's key.
        folder: where ``encoder_<key>.pt`` goes.
        views: random views.
        training: None is the default.
        device: where to train.
        through: the same volumes through the generator's first stage, if it has one; a view shows one or the other.

    Returns:
        the encoder, in evaluation mode, and its key, 16 hexadecimal digits.

    Raises:
        ValueError: fewer than two volumes, or ``through`` of another shape.
        WeightsError: a file in the cache that is damaged.
    """
    if volumes.ndim != 5 or len(volumes) < 2:
        raise ValueError(f"the encoder needs two or more training volumes, got shape {tuple(volumes.shape)}")
    if through is not None and through.shape != volumes.shape:
        raise ValueError(
            f"expected volumes through the first stage of the shape {tuple(volumes.shape)}, got {tuple(through.shape)}"
        )
    versions = torch.stack([volumes] if through is None else [volumes, through])
    training = training or ContrastiveTraining()
    facts = {"views": vars(views), "training": training._asdict(), "version": ENCODER_VERSION, **made_from}
    facts |= {"shape": list(versions.shape)}
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    path = Path(folder) / f"encoder_{key}.pt"
    with seeded(training.seed):
        encoder = ContrastiveEncoder(tuple(volumes.shape[1:])).to(device)
    if not path.is_file():
        _train(encoder, versions, views, training, path.with_suffix(".unfinished.pt"))
        state = {name: tensor.cpu() for name, tensor in encoder.state_dict().items()}
        write_atomically(path, lambda temporary: save_tensors(state, temporary))
        path.with_suffix(".unfinished.pt").unlink(missing_ok=True)
    encoder.load_state_dict(read_state(path))
    return encoder.eval(), key


@torch.no_grad()
def embed(encoder: nn.Module, volumes: Tensor, batch_size: int = 32) -> Tensor:
    """Points of reduced volumes, (N, C, h, w, d) in [-1, 1] -> (N, F) of length 1 on the CPU."""
    device = next(encoder.parameters()).device
    points = [encoder(standardise(batch.to(device))).float().cpu() for batch in volumes.split(batch_size)]
    return torch.cat(points)


def _train(
    encoder: ContrastiveEncoder, versions: Tensor, views: RandomViews, training: ContrastiveTraining, unfinished: Path
) -> None:
    """Train with ``versions`` of N volumes, (V, N, C, h, w, d)."""
    device = next(encoder.parameters()).device
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=training.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, training.learning_rate, training.steps)
    parts: dict[str, Any] = {"encoder": encoder, "optimizer": optimizer, "schedule": schedule}
    first = _resume(parts, unfinished)
    if first:
        logger.info(f"the audit's encoder resumes at step {first} of {training.steps}")
    encoder.train()
    bar = tqdm(range(first, training.steps), desc="encoder", initial=first, total=training.steps, unit="step")
    for step in bar:
        # all chance of a step follows from its number, so that it does not matter where training was interrupted
        generator = torch_generator(derive_seed(training.seed, step))
        chosen = torch.randperm(versions.shape[1], generator=generator)[: training.volumes_per_step]
        which = torch.randint(len(versions), (2, len(chosen)), generator=generator)
        one, other = (encoder(views(versions[some, chosen].to(device), generator)) for some in which)
        loss = nt_xent(one, other, training.temperature)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 50 == 0 and step + 1 < training.steps:
            content = {name: part.state_dict() for name, part in parts.items()} | {"step": step + 1}
            write_atomically(unfinished, partial(save_tensors, content))
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)


def _resume(parts: Mapping[str, Any], unfinished: Path) -> int:
    """Load the state that an interrupted training has left, if any, and return the step to resume from."""
    if not unfinished.is_file():
        return 0
    content = load_tensors(unfinished)
    for name, part in parts.items():
        part.load_state_dict(content[name])
    return int(content["step"])
