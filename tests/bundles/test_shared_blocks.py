"""Each bundle is readable alone and so repeats what its siblings say: here is what keeps the copies equal."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from bundle_folders import BUNDLES, bundles_with, config_files, for_bundles_with, read

LDM_BUNDLES = bundles_with("train_autoencoder.yaml", "train.yaml")
STAGES = ("train_autoencoder.yaml", "train.yaml", "evaluate.yaml", "inference.json")
# What a sibling says otherwise on purpose. Files: spacing and pictures come from the data or from the weights' note;
# montages take fewer steps than the reference sampler; overlays and preparation are their own subject.
OWN_PER_FILE = {
    "dataset_dir",
    "imports",
    "initialize",
    "made_from",
    "num_inference_steps",
    "num_volumes",
    "num_workers",
    "optimizer",
    "lr_scheduler",
    "sampler",
    "seed",
    "spacing",
    "stage_dir",
    "train",
    "validate",
    "loss",
    "run",
    "training",
    "val_interval",
    "writer",
    "handlers",
    "dataset",
    "dataloader",
    "evaluator",
    "inferer",
}


def is_block(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(part, dict) for part in value))


def is_knob(value: Any) -> bool:
    """A value that a dataset may have of its own: a number, a size, a text that is no expression, nothing."""
    if isinstance(value, str):
        return not value.startswith(("$", "@", "%"))
    return not is_block(value)


def without_numbers(value: Any) -> Any:
    """An expression may hold a number of the dataset, such as the spacing of weights that came without a note."""
    return re.sub(r"\d+(\.\d+)?", "0", value) if isinstance(value, str) else value


def stages(bundle: Path) -> dict[str, dict]:
    found = {file.name: read(file) for file in config_files(bundle) if file.name in STAGES}
    # images in training and evaluation, starting noise in inference: two blocks that MONAI wants under one name
    for config in found.values():
        if isinstance(config.get("preprocessing"), dict):
            config["preprocessing of noise"] = config.pop("preprocessing")
    return found


@pytest.mark.parametrize("bundle", BUNDLES, ids=[bundle.name for bundle in BUNDLES])
def test_the_configurations_of_a_bundle_agree(bundle: Path) -> None:
    """Networks, preprocessing, scheduler and every knob that two files have in common, by value."""
    for (one, first), (other, second) in combinations(stages(bundle).items(), 2):
        for id in first.keys() & second.keys() - OWN_PER_FILE:
            assert first[id] == second[id], f"{id} in {one} and {other}"


@for_bundles_with("train_autoencoder.yaml", "train.yaml")
def test_what_makes_the_generator_is_in_every_file_that_needs_it(bundle: Path) -> None:
    found = stages(bundle)
    for file in ("train.yaml", "evaluate.yaml", "inference.json"):
        assert found[file].keys() >= {"autoencoder_def", "denoiser_def", "scheduler", "network_def"}
    for file in ("train_autoencoder.yaml", "train.yaml", "evaluate.yaml"):
        assert found[file].keys() >= {"autoencoder_def", "preprocessing"}


@pytest.mark.parametrize("file", [*STAGES, "multi_gpu_train.yaml"])
def test_latent_diffusion_bundles_differ_in_their_knobs_alone(file: str) -> None:
    configs = {bundle.name: read(bundle / "configs" / file) for bundle in LDM_BUNDLES}
    for (one, first), (other, second) in combinations(configs.items(), 2):
        assert first.keys() == second.keys(), f"{one} and {other}"
        for id in first:
            if not (is_knob(first[id]) and is_knob(second[id])):
                assert without_numbers(first[id]) == without_numbers(second[id]), f"{id} of {one} and {other}"


def test_the_fast_recipe_is_the_same_for_all_latent_diffusion_bundles() -> None:
    recipes = [(bundle / "configs" / "fast.yaml").read_text() for bundle in LDM_BUNDLES]
    assert len(recipes) > 1 and set(recipes) == {recipes[0]}


@pytest.mark.parametrize("file", [*STAGES, "multi_gpu_train.yaml"])
def test_latent_diffusion_bundles_explain_their_knobs_alike(file: str) -> None:
    """Same order of ids, so that two bundles can be read side by side."""
    orders = [list(read(bundle / "configs" / file)) for bundle in LDM_BUNDLES]
    assert all(order == orders[0] for order in orders)
