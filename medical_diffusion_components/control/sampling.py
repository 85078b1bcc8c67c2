"""Sampling under a mask, and the weights that it takes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medical_diffusion_components.control.branch import ControlBranch, ControlledDenoiser
from medical_diffusion_components.diffusion.generator import LatentDiffusionGenerator
from medical_diffusion_components.files import file_hash
from medical_diffusion_components.weights import WeightsError, load_weights, provenance

__all__ = ["draw_controlled", "load_control"]


def load_control(
    branch: ControlBranch, path: str | os.PathLike, generator: str | os.PathLike, knobs: Mapping[str, Any]
) -> str:
    """Load a branch's weights, which belong to one generator alone, and return their SHA-256.

    Args:
        branch: gets the weights.
        path: of the weights that ``train_control.yaml`` made.
        generator: file of the generator's weights.
        knobs: those that ``branch`` was built with.

    Raises:
        WeightsError: there are none, they are damaged, were trained with other knobs, or control another generator.
    """
    if not Path(path).is_file():
        raise WeightsError(
            f"expected a control branch at {path}, but there is none: train_control.yaml trains one for the generator"
        )
    trained, found = provenance(path).get("generator"), file_hash(generator)
    if trained != found:
        raise WeightsError(
            f"{path} controls the generator with SHA-256 {trained}, but {generator} has {found}: train_control.yaml trains "
            "a branch for it"
        )
    return load_weights(branch, path, knobs)


@torch.no_grad()
def draw_controlled(
    generator: LatentDiffusionGenerator,
    controlled: ControlledDenoiser,
    noise: Tensor,
    mask: Tensor,
    conditions: Tensor | None = None,
) -> Tensor:
    """Volumes in about [-1, 1] that the generator draws under masks; its own denoiser is back in place afterwards.

    Shape:
        noise (B, C, h, w, d), mask (B, M, H, W, D), conditions (B, V) or None -> (B, 1, H, W, D)
    """
    denoiser = generator.denoiser
    generator.denoiser = controlled
    try:
        with controlled.asked(mask):
            return generator(noise, conditions)
    finally:
        generator.denoiser = denoiser
