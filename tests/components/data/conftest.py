"""A generator that is small enough to sample from in a test."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser

from medical_diffusion_components.weights import save_weights

ADNI = Path(__file__).parents[3] / "bundles" / "adni_ldm"
SMALL = {
    "image_size": [16, 24, 12],
    "base_channels": 4,
    "compression": [2, 2, 2],
    "norm_groups": 4,
    "num_codes": 32,
    "denoiser_channels": 8,
    "channel_multipliers": [1, 2],
    "num_train_timesteps": 12,
    "sampler": "ddim",
    "num_inference_steps": 2,
}


@pytest.fixture(scope="module")
def small_generator(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Settings that make ``adni_ldm`` a small generator with random weights."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("generator")
    parser = ConfigParser(ConfigParser.load_config_file(ADNI / "configs" / "inference.json"))
    parser.update(SMALL)
    note = {"data": "embedded template cohort", "notice": "not patients", "spacing": [2.0, 3.0, 4.0]}
    save_weights(parser.get_parsed_content("network_def"), folder / "model.pt", note)
    return {**SMALL, "models_dir": str(folder)}
