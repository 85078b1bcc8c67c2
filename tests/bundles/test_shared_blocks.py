"""Each bundle is readable alone and so repeats what its siblings say: here is what keeps the copies equal."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from bundle_folders import BUNDLES, bundles_with, by_default, config_files, for_bundles_with, read

LDM_BUNDLES = bundles_with("train_autoencoder.yaml", "train.yaml")
STAGES = (
    "train_autoencoder.yaml",
    "train.yaml",
    "evaluate.yaml",
    "audit.yaml",
    "edit.yaml",
    "train_control.yaml",
    "pairs.yaml",
    "evaluate_pairs.yaml",
    "inference.json",
)
MASK_STAGES = ("train_masks.yaml", "masks.yaml", "evaluate_masks.yaml")  # a generator of its own, of masks
OWN_OF_MASKS = {
    "codec",
    "mask_block",
    "mask_code_channels",
    "weights",
}  # made from the training's masks and for its generator, or as the note has it
# What a sibling says otherwise on purpose. Files: spacing and pictures come from the data or from the weights' note;
# montages take fewer steps than the reference sampler; overlays and preparation are their own subject.
OWN_PER_FILE = {
    "classes",
    "controlled",  # by a branch in training, at full strength
    "conditions",  # declared in training, asked for in inference
    "dataset_dir",
    "declared_conditions",
    "imports",
    "knobs",
    "label_classes",  # of the data in training, of the branch's note in sampling
    "initialize",
    "made_from",
    "num_inference_steps",
    "num_volumes",
    "num_workers",
    "optimizer",
    "recording",
    "releasing",  # of what the file trains
    "lr_scheduler",
    "samples_dir",
    "sampler",
    "seed",
    "spacing",
    "stage_dir",
    "trained_window",
    "train",
    "validate",
    "loss",
    "run",
    "training",
    "evaluating",
    "val_interval",
    "writer",
    "handlers",
    "dataset",
    "dataloader",
    "evaluator",
    "of_conditions",
    "guidance",  # inference notes the interval, too
    "guidance_scale",  # an option that an annotation server shows in inference
    "inferer",
}


def is_block(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(part, dict) for part in value))


def is_knob(value: Any) -> bool:
    """A value that a dataset may have of its own: a number, a size, a text that is no expression, nothing."""
    value = by_default(value)
    if isinstance(value, str):
        return not value.startswith(("$", "@", "%"))
    return not is_block(value)


def without_numbers(value: Any) -> Any:
    """An expression may hold a number of the dataset, such as the spacing of weights that came without a note."""
    return re.sub(r"\d+(\.\d+)?", "0", value) if isinstance(value, str) else value


def stages(bundle: Path, names: Sequence[str] = STAGES) -> dict[str, dict]:
    found = {file.name: read(file) for file in config_files(bundle) if file.name in names}
    found = {name: {id: by_default(value) for id, value in config.items()} for name, config in found.items()}
    # images in training and evaluation, starting noise in inference: two blocks that MONAI wants under one name
    for config in found.values():
        if isinstance(config.get("preprocessing"), dict):
            config["preprocessing of noise"] = config.pop("preprocessing")
        for knob in ("guidance_scale", "guidance_interval"):  # of sampling alone
            config.get("network_def", {}).pop(knob, None)
    return found


@pytest.mark.parametrize("bundle", BUNDLES, ids=[bundle.name for bundle in BUNDLES])
def test_the_configurations_of_a_bundle_agree(bundle: Path) -> None:
    """Networks, preprocessing, scheduler and every knob that two files have in common, by value."""
    for names, own in ((STAGES, OWN_PER_FILE), (MASK_STAGES, OWN_PER_FILE | OWN_OF_MASKS)):
        for (one, first), (other, second) in combinations(stages(bundle, names).items(), 2):
            for id in first.keys() & second.keys() - own:
                assert first[id] == second[id], f"{id} in {one} and {other}"


@for_bundles_with("train_autoencoder.yaml", "train.yaml")
def test_what_makes_the_generator_is_in_every_file_that_needs_it(bundle: Path) -> None:
    found = stages(bundle)
    for file in ("train.yaml", "evaluate.yaml", "audit.yaml", "edit.yaml", "inference.json"):
        assert found[file].keys() >= {"autoencoder_def", "denoiser_def", "scheduler", "network_def"}
    for file in ("train_autoencoder.yaml", "train.yaml", "evaluate.yaml", "audit.yaml"):
        assert found[file].keys() >= {"autoencoder_def", "preprocessing"}


@pytest.mark.parametrize("file", [*STAGES, *MASK_STAGES, "multi_gpu_train.yaml", "release_dataset.yaml"])
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


@pytest.mark.parametrize("file", [*STAGES, *MASK_STAGES, "multi_gpu_train.yaml", "release_dataset.yaml"])
def test_latent_diffusion_bundles_explain_their_knobs_in_one_order(file: str) -> None:
    """Same order of ids, so that two bundles can be read side by side."""
    orders = [list(read(bundle / "configs" / file)) for bundle in LDM_BUNDLES]
    assert all(order == orders[0] for order in orders)


OVERLAID = bundles_with("multi_gpu_train.yaml")


def test_every_configuration_says_the_device_in_one_way() -> None:
    said = {read(file)["device"] for bundle in BUNDLES for file in config_files(bundle) if "device" in read(file)}
    assert said == {"$distributed.own_device()"}


@pytest.mark.parametrize("bundle", OVERLAID, ids=lambda bundle: bundle.name)
def test_the_overlay_for_several_processes_says_what_its_siblings_say(bundle: Path) -> None:
    """One writer of curves, processes joined and left in one way, and every trained network wrapped as it stands."""
    overlay = read(bundle / "configs" / "multi_gpu_train.yaml")
    stages = [
        read(bundle / "configs" / name)
        for name in ("train.yaml", "train_autoencoder.yaml")
        if (bundle / "configs" / name).is_file()
    ]
    sibling = read(OVERLAID[0] / "configs" / "multi_gpu_train.yaml")
    for id in ("writer", "finalize"):
        assert overlay[id] == sibling[id]
    assert overlay["initialize"][1:] == sibling["initialize"][1:]
    assert overlay["initialize"][0] == stages[0]["initialize"][0]
    wrapped = {id: block for id, block in overlay.items() if isinstance(block, dict) and id != "writer"}
    trained = {stage["train"]["trainer"]["network"].removeprefix("@") for stage in stages}
    assert trained <= wrapped.keys()
    for id, block in wrapped.items():
        assert block["_target_"] == "torch.nn.parallel.DistributedDataParallel"
        assert block["device_ids"] == sibling["denoiser"]["device_ids"]
        module = block["module"]
        module = module["module"] if isinstance(module, dict) else module  # batch norm exchanged on the way
        assert [module] == [stage[id] for stage in stages if id in stage], f"{id} in one process and in several"


@pytest.mark.parametrize("file", ["demo.yaml", "low_compression.yaml"])
def test_overlays_of_latent_diffusion_bundles_set_the_same_knobs(file: str) -> None:
    """In one order; the values are the data set's own, and so is whether the demo's volumes are smaller."""
    files = {bundle.name: bundle / "configs" / file for bundle in LDM_BUNDLES if (bundle / "configs" / file).is_file()}
    overlays = {name: [id for id in read(path) if id != "image_size"] for name, path in files.items()}
    for name, ids in overlays.items():
        assert ids == next(iter(overlays.values())), name
