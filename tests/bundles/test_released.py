"""Weights that a bundle comes with: used where there are none of the user's, and never in the way of them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from bundle_folders import (
    Trained,
    bundles_with,
    by_default,
    config_files,
    for_bundles_with,
    last_line,
    read,
    run,
    tiny,
    tree,
    undisturbed,
    workflow,
)
from filelock import FileLock

from medical_diffusion_components.files import file_hash
from medical_diffusion_components.weights import load_tensors, noted_knobs, provenance, save_tensors
from medical_diffusion_components.workflow import FOLDERS

KINDS = [
    bundle for bundle in bundles_with("inference.json") if bundle.name not in ("duke_ldm", "lidc_ldm", "mrnet_ldm")
]
every_kind = pytest.mark.parametrize("bundle", KINDS, ids=[bundle.name for bundle in KINDS])
# of a network, but not of its weights
HOW_TO_SAMPLE = {"sampler", "num_inference_steps", "displayable_configs", "guidance_scale", "guidance_interval"}
# of inference and evaluation alone, which no note has
FAST = {"num_volumes": 2, "overlap": 0.1, "num_inference_steps": 2, "sampler": "ddim", "num_more_held_out": 6}
BANNER = "These weights came with the bundle"


class Clone(NamedTuple):
    """A copy of a bundle as it lies in the repository, with the weights of a tiny training as those it comes with."""

    bundle: Path
    tracked: dict[str, bytes]
    done: Trained

    def fast(self, config: str) -> dict[str, Any]:
        return {id: value for id, value in FAST.items() if id in read(self.bundle / "configs" / config)}

    def run(self, config: str) -> str:
        return run(self.bundle, config, **self.fast(config))

    def changed(self) -> set[str]:
        return {name for name, content in self.tracked.items() if tree(self.bundle).get(name) != content}


@pytest.fixture
def clone(bundle: Path, trained: Callable[[Path], Trained], shared: Path, tmp_path: Path) -> Clone:
    done, original = trained(bundle), shared / "with_released_weights" / bundle.name
    original.parent.mkdir(exist_ok=True)
    with FileLock(str(original) + ".lock"):
        if not (original / "released" / "model.pt").is_file():
            made = shutil.ignore_patterns("models", "output", "demo", "released")
            shutil.copytree(bundle, original, ignore=made, dirs_exist_ok=True)
            run(original, "train.yaml", run_id="releasing", **done.overrides)
    copy = Path(shutil.copytree(original, tmp_path / bundle.name))
    return Clone(copy, tree(copy), done)


def notes(folder: Path) -> list[dict]:
    return [json.loads(file.read_text()) for file in sorted(folder.rglob("*.json")) if "cohort" not in str(file)]


@pytest.mark.slow
@every_kind
def test_a_clone_samples_at_once_and_own_weights_come_first(clone: Clone) -> None:
    released = file_hash(clone.bundle / "released" / "model.pt")
    assert BANNER in clone.run("inference.json")
    made = tree(clone.bundle / "output")
    assert [name for name in made if name.endswith(".nii.gz")]
    assert clone.changed() == set()
    hashes = {note["weights_sha256"] for note in notes(clone.bundle / "output") if "weights_sha256" in note}
    assert hashes == {released} or clone.bundle.name == "swin_unetr_pretrain"  # which writes no notes

    (clone.bundle / "models").mkdir()
    state = load_tensors(clone.bundle / "released" / "model.pt")
    state = {name: tensor * 1.5 if name.endswith("weight") else tensor for name, tensor in state.items()}
    own = clone.bundle / "models" / "model.pt"
    save_tensors(state, own)
    note = provenance(clone.bundle / "released" / "model.pt") | {"sha256": file_hash(own)}
    own.with_suffix(".json").write_text(json.dumps(note))
    assert BANNER not in clone.run("inference.json")
    assert clone.changed() == set()
    now = tree(clone.bundle / "output")
    # segmentations, volumes and painted patches: at least one is another one now
    assert [name for name in made if name.endswith(".nii.gz") and made[name] != now[name]]


@pytest.mark.slow
@every_kind
def test_networks_are_built_as_the_note_says(clone: Clone) -> None:
    released = file_hash(clone.bundle / "released" / "model.pt")
    for config in ("inference.json", "evaluate.yaml", "audit.yaml"):
        if not (clone.bundle / "configs" / config).is_file():
            continue
        with undisturbed() as printed:
            started = workflow(clone.bundle, config, bundle_root=str(clone.bundle), **clone.fast(config))
            started.initialize()
            assert started.parser.get_parsed_content(loading(clone.bundle, config)) == released
            assert started.parser.get_parsed_content("knobs") == {
                id: value
                for id, value in provenance(clone.bundle / "released" / "model.pt")["knobs"].items()
                if id in read(clone.bundle / "configs" / config)["knobs"]
            }
        assert BANNER in printed.getvalue()


def loading(bundle: Path, config: str) -> str:
    """Id of the expression that loads the weights."""
    content = read(bundle / "configs" / config)
    for id in ("inference", "evaluating", "auditing"):
        for number, line in enumerate(content.get(id, [])):
            if "load_weights(" in str(line):
                return f"{id}::{number}"
    raise AssertionError(f"{config} loads no weights")


@pytest.mark.slow
@every_kind
def test_a_knob_that_contradicts_the_released_weights_is_named(clone: Clone) -> None:
    other = {"base_channels": 8, "gan_channels": 16, "depths": [2, 1, 1, 1]}
    (knob,) = other.keys() & read(clone.bundle / "configs" / "inference.json").keys()
    line = last_line(clone.bundle, "inference.json", **clone.fast("inference.json"), **{knob: other[knob]})
    before = provenance(clone.bundle / "released" / "model.pt")["knobs"][knob]
    assert f"was trained with {knob} {before}, not {other[knob]}" in line


@pytest.mark.slow
@for_bundles_with("train_autoencoder.yaml", at_most=1)
def test_training_takes_no_released_first_stage_and_changes_no_tracked_file(bundle: Path, clone: Clone) -> None:
    """Not even one that somebody has put there."""
    for suffix in (".pt", ".json"):
        shutil.copy(clone.done.models / f"model_autoencoder{suffix}", clone.bundle / "released")
    before = tree(clone.bundle)
    overrides = {id: value for id, value in clone.done.overrides.items() if not id.endswith("_dir")}
    run(clone.bundle, "train.yaml", **overrides, seed=1)
    own = clone.bundle / "models" / "model_autoencoder.pt"
    assert provenance(clone.bundle / "models" / "model.pt")["first_stage"] == file_hash(own)
    assert file_hash(own) != file_hash(clone.bundle / "released" / "model_autoencoder.pt")
    assert {name: content for name, content in tree(clone.bundle).items() if name in before} == before
    assert {name.split("/")[0] for name in tree(clone.bundle).keys() - before.keys()} == {"models", "output"}


@pytest.mark.slow
@pytest.mark.parametrize("bundle", [kind for kind in KINDS if kind.name != "adni_ldm"], ids=lambda bundle: bundle.name)
def test_training_beside_released_weights_changes_no_tracked_file(bundle: Path, clone: Clone) -> None:
    overrides = {id: value for id, value in clone.done.overrides.items() if not id.endswith("_dir")}
    run(clone.bundle, "train.yaml", **overrides)
    assert clone.changed() == set()
    assert (clone.bundle / "models" / "model.pt").is_file()


def knobs_of(config: dict, id: str) -> Iterator[str]:
    """The knobs that a block depends on, through whatever lies between."""
    pending, seen = [id], set()
    while pending:
        id = pending.pop()
        if id in seen or id in FOLDERS | HOW_TO_SAMPLE:
            continue
        seen.add(id)
        references = re.findall(r"@(\w+)", json.dumps(config[id]))
        if by_default(config[id]) != config[id] or not references:
            yield id
        pending += [name for name in references if name in config]


@for_bundles_with("train_autoencoder.yaml", "inference.json")
def test_sampling_takes_every_step_that_the_weights_were_trained_with(bundle: Path, tmp_path: Path) -> None:
    knobs = {id: value for id, value in tiny(bundle).items() if id in read(bundle / "configs" / "train.yaml")["knobs"]}
    (tmp_path / "model.json").write_text(json.dumps({"knobs": knobs | {"num_train_timesteps": 7}}))
    parser = workflow(bundle, "inference.json", models_dir=str(tmp_path)).parser
    assert parser.get_parsed_content("displayable_configs")["num_inference_steps"] == 7
    assert parser.get_parsed_content("network_def").timesteps.tolist() == [6, 5, 4, 3, 2, 1, 0]


@for_bundles_with("train_autoencoder.yaml", "train.yaml")
def test_knobs_that_came_later_are_neutral_by_default(bundle: Path) -> None:
    """Notes without them are read so: a configuration with another default would sample what was not trained."""
    later = noted_knobs({"knobs": {"image_size": 1}})
    del later["image_size"]
    found = [(file.name, id, read(file).get(id)) for file in config_files(bundle) for id in later]
    taken = [(name, id, value) for name, id, value in found if str(value).startswith("$trained_knob(")]
    assert {id for _, id, _ in taken} == set(later)
    assert [(name, id) for name, id, value in taken if by_default(value) != later[id]] == []


@for_bundles_with("inference.json")
@pytest.mark.parametrize("file", ["inference.json", "evaluate.yaml", "audit.yaml"])
def test_every_knob_of_the_network_is_in_the_note_and_comes_from_it(bundle: Path, file: str) -> None:
    if not (bundle / "configs" / file).is_file():
        pytest.skip("this bundle has no such file")
    config, training = read(bundle / "configs" / file), read(bundle / "configs" / "train.yaml")
    needed = set(knobs_of(config, "network_def")) - {"embedded_classes", "tile_size"} | {"axcodes"}
    assert set(config["knobs"]) == needed
    from_note = {id for id, value in config.items() if str(value).startswith("$trained_knob(")}
    assert needed <= from_note <= {*training["knobs"], *training.get("released_defaults", {})}
    for block in (config["knobs"], training["knobs"]):
        assert all(value == f"@{id}" for id, value in block.items())
    # the note has what is declared under one name alone
    assert set(knobs_of(training, "network_def")) - {"conditions", "tile_size"} <= set(training["knobs"])
