"""Estimates of memory against every peak that was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medical_diffusion_components.preflight import diffusion_gb, first_stage_gb, swin_unetr_gb, training_memory

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "benchmarks" / "results"
ROWS = [
    row for name in ("memory", "check_memory") for row in json.loads((RESULTS / f"{name}.json").read_text())["rows"]
]


def numbers(text):
    return [int(n) for n in text.split("x")]


def estimate(row):
    batch = int(row["batch"])
    if row["stage"] == "autoencoder":
        return first_stage_gb(numbers(row["volume"]), batch)
    if row["stage"] == "diffusion":
        latent = numbers(row["latent"])
        return diffusion_gb(latent, batch, latent[1])
    return swin_unetr_gb(numbers(row["volume"]), batch)


@pytest.mark.parametrize(("batch", "measured"), [(10, 1.86), (4, 1.22)])
def test_a_denoiser_that_takes_positions_together_needs_what_was_measured(batch, measured):
    """GB of latents of 32 x 32 x 32, by ``measure_apart`` of ``benchmarks/bundle_step.py``."""
    assert diffusion_gb([32, 32, 32], batch, 32, [2, 2, 2]) == pytest.approx(measured, rel=0.2)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['bundle']}-{row['stage']}-{row['volume']}-{row['batch']}")
def test_an_estimate_is_within_a_fifth_of_what_was_measured(row):
    assert estimate(row) == pytest.approx(float(row["peak GB"]), rel=0.2)


def test_a_bundles_own_knobs_are_taken_unless_others_are_given():
    bundle = ROOT / "bundles" / "adni_ldm"
    assert training_memory(bundle, [64, 64, 64]) == {
        "first stage": first_stage_gb([64, 64, 64], 2),
        "diffusion": diffusion_gb([32, 32, 32], 10, 32),
    }
    assert training_memory(bundle, [64, 64, 64], {"batch_size": 3})["diffusion"] == diffusion_gb([32, 32, 32], 3, 32)
    changed = {"denoiser_patch": [2, 2, 2], "denoiser_channels": 8, "base_channels": 4, "batch_size": "$3 * 1"}
    assert training_memory(bundle, [64, 64, 64], {**changed, "autoencoder_batch_size": 1, "train::x": 2}) == {
        "first stage": first_stage_gb([64, 64, 64], 1, 4),
        "diffusion": diffusion_gb([32, 32, 32], 10, 8, [2, 2, 2]),
    }
    narrow = training_memory(bundle, [64, 96, 32])["diffusion"]  # the base width is the number of positions along H
    assert narrow == diffusion_gb([32, 48, 16], 10, 32)
    assert training_memory(ROOT / "bundles" / "swin_unetr_finetune", [1]) == {
        "Swin UNETR": swin_unetr_gb([64, 64, 32], 2)
    }
