"""Peak memory of a training step, from sizes alone.

The first term is what a process needs for its libraries, networks and optimisers; the others grow with what a step
keeps for its backward pass. The constants are fitted to the peaks of whole processes on a CPU in float32
(``benchmarks/results/memory.json`` and ``check_memory.json``); a GPU's were not measured.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from monai.bundle import ConfigParser

__all__ = ["diffusion_gb", "first_stage_gb", "swin_unetr_gb", "training_memory"]

_FIRST_STAGE = (0.6, 2.3e-6)  # GB; GB a voxel of a batch, at 16 channels
_FIRST_STAGE_CHANNELS = 16
# GB; GB a latent position of a batch outside the denoiser, and within it; the same for each channel of its base width
_DIFFUSION = (0.77, 0.35e-6, 15.6e-6, 0.261e-6)
_SWIN = (0.9, 1.04, 10.0e-6)  # GB; GB of weights with what the optimiser keeps; GB a voxel of a batch
_SWIN_FEATURES = 48


def first_stage_gb(image_size: Sequence[int], batch_size: int, base_channels: int = 16) -> float:
    """Of the 3D VQ-GAN with its discriminators, in GB."""
    voxels = math.prod(image_size) * batch_size
    return _FIRST_STAGE[0] + _FIRST_STAGE[1] * voxels * base_channels / _FIRST_STAGE_CHANNELS


def diffusion_gb(
    latent_size: Sequence[int], batch_size: int, width: int, patch_size: Sequence[int] = (1, 1, 1)
) -> float:
    """Of the denoiser, in GB; ``width`` is its base width, and ``patch_size`` the positions that it takes together."""
    positions = math.prod(latent_size) * batch_size
    libraries, outside, within, channel = _DIFFUSION
    return libraries + positions * (outside + (within + channel * width) / math.prod(patch_size))


def swin_unetr_gb(roi_size: Sequence[int], batch_size: int, feature_size: int = 48) -> float:
    """Of a Swin UNETR on crops, in GB; measured at a ``feature_size`` of 48, of which weights grow with the square."""
    libraries, weights, voxel = _SWIN
    share = feature_size / _SWIN_FEATURES
    return libraries + weights * share**2 + voxel * math.prod(roi_size) * batch_size * share


def training_memory(
    bundle_root: str | os.PathLike,
    image_size: Sequence[int],
    changed: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, float]:
    """GB of a training step by stage, at ``image_size`` and otherwise as a bundle's own configurations say.

    Args:
        bundle_root: its ``configs`` hold ``train.yaml`` and, for latent diffusion, ``train_autoencoder.yaml``.
        image_size: voxels H, W, D of the prepared volumes; of crops, the configuration's ``roi_size`` counts.
        changed: what a run has in place of what the files say; expressions do not count.
    """
    configs = Path(bundle_root) / "configs"
    own = {id: value for id, value in changed.items() if not isinstance(value, str)}
    train = {**ConfigParser.load_config_file(configs / "train.yaml"), **own}
    if "roi_size" in train:
        return {"Swin UNETR": swin_unetr_gb(train["roi_size"], train["batch_size"], train["feature_size"])}
    first = {**ConfigParser.load_config_file(configs / "train_autoencoder.yaml"), **own}
    latent = [n // c for n, c in zip(image_size, train["compression"])]
    width = train["denoiser_channels"] if isinstance(train["denoiser_channels"], int) else latent[0]  # or an expression
    return {
        "first stage": first_stage_gb(image_size, first["autoencoder_batch_size"], train["base_channels"]),
        "diffusion": diffusion_gb(latent, train["batch_size"], width, train["denoiser_patch"]),
    }
