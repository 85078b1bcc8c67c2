"""Interrupted at any moment and started again, a training ends where it would have ended anyway, bit for bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from bundle_folders import assert_same, bundles_with, last_line, run, tiny, tree
from filelock import FileLock
from warm_processes import python

from medical_diffusion_components.diffusion.generator import PREDICTION_TYPES
from medical_diffusion_components.engines.vqgan_trainer import VQGANTrainer
from medical_diffusion_components.handlers.post_hoc_ema import post_hoc_average
from medical_diffusion_components.handlers.seeding import SeedIterations
from medical_diffusion_components.reports.montages import ReconstructionMontage, SampleMontage

pytestmark = pytest.mark.slow  # most of these train

# One bundle is enough: test_shared_blocks.py holds the others to the same stages.
BUNDLE = bundles_with("train_autoencoder.yaml", "train.yaml")[0]
STAGES = ("autoencoder", "diffusion")
Drawn = list[tuple[str, int, list[str]]]  # stage, iteration, cases of the batch


class Interrupted(Exception):
    """Stands for whatever ends a process in the middle of an epoch."""


class Finished(NamedTuple):
    """A training that nothing interrupted."""

    output: Path
    models: Path
    drawn: Drawn


def settings(folder: Path, data: Path, **overrides: Any) -> dict[str, Any]:
    folders = {"output_dir": str(folder / "output"), "models_dir": str(folder / "models"), "dataset_dir": str(data)}
    return tiny(BUNDLE, **folders, autoencoder_epochs=2, epochs=2, held_out_timesteps=2, **overrides)


def of_first_stage(overrides: dict[str, Any]) -> dict[str, Any]:
    """Without what is the second stage's alone, which the first one's configuration refuses."""
    return {id: value for id, value in overrides.items() if id != "held_out_timesteps"}


def train(
    drawn: Drawn, stop: tuple[str, int] | None = None, config: str | list[str] = "train.yaml", **overrides: Any
) -> None:
    """Run a training, write down what it draws, and interrupt it before the given iteration of the given stage."""
    seed = SeedIterations.__call__

    def record(self: SeedIterations, engine: Any) -> None:
        place = (STAGES[not isinstance(engine, VQGANTrainer)], engine.state.iteration)
        if place == stop:
            raise Interrupted
        drawn.append((*place, list(engine.state.batch["case_id"])))
        seed(self, engine)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SeedIterations, "__call__", record)
        patch.setattr(SampleMontage, "__call__", lambda *_: None)  # half of the time, and of no consequence
        patch.setattr(ReconstructionMontage, "_draw", lambda *_: None)
        try:
            run(BUNDLE, config, **overrides)
        except Exception as error:
            cause = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            if not isinstance(cause, Interrupted):
                raise


@pytest.fixture(scope="module")
def finished(shared: Path, nifti_folder: Path) -> Finished:
    folder = shared / "uninterrupted"
    folder.mkdir(exist_ok=True)
    with FileLock(str(folder) + ".lock"):
        notes = folder / "drawn.json"
        if not notes.is_file():
            drawn: Drawn = []
            train(drawn, **settings(folder, nifti_folder))
            notes.write_text(json.dumps(drawn))
    return Finished(folder / "output", folder / "models", [tuple(entry) for entry in json.loads(notes.read_text())])


@pytest.fixture(scope="module")
def interrupted(shared: Path, nifti_folder: Path) -> Callable[[Path], dict[str, Any]]:
    """Copy a first stage that was interrupted in its second epoch to a folder, and return the settings to go on."""
    original = shared / "interrupted"
    original.mkdir(exist_ok=True)
    with FileLock(str(original) + ".lock"):
        if not (original / "output").exists():
            train([], stop=("autoencoder", 5), **settings(original, nifti_folder, checkpoint_minutes=0))

    def copy(folder: Path) -> dict[str, Any]:
        shutil.copytree(original, folder, dirs_exist_ok=True)
        return settings(folder, nifti_folder, checkpoint_minutes=0)

    return copy


def checkpoints(output: Path | str, stage: str = "autoencoder") -> list[Path]:
    return sorted((Path(output) / stage / "checkpoints").glob("checkpoint_*.pt"))


def assert_same_end(
    output: Path | str, models: Path | str, finished: Finished, stages: tuple[str, ...] = STAGES
) -> None:
    """Networks, codebook, optimisers, averages, random state, best metric; published weights and their notes."""
    for stage in stages:
        one, other = (torch.load(checkpoints(o, stage)[-1], weights_only=True) for o in (output, finished.output))
        assert_same(one, other, stage)
    for name in ("model_autoencoder", "model")[: len(stages)]:
        for suffix in (".pt", ".json"):
            assert (Path(models) / f"{name}{suffix}").read_bytes() == (finished.models / f"{name}{suffix}").read_bytes()


def test_the_checkpoint_holds_all_that_training_changes(finished: Finished) -> None:
    first, second = (torch.load(checkpoints(finished.output, stage)[-1], weights_only=True) for stage in STAGES)
    assert first["objects"].keys() >= {
        "autoencoder",
        "slice_discriminator",
        "volume_discriminator",
        "optimizer",
        "discriminator_optimizer",
    }
    codebook = {"codes", "ema_counts", "ema_sums", "initialised"}
    assert {f"codebook.{name}" for name in codebook} <= first["objects"]["autoencoder"].keys()
    assert second["objects"].keys() >= {"denoiser", "ema", "optimizer"}
    for content in (first, second):
        assert content["best"][1] in (1, 2) and content["objects"]["optimizer"]["state"]
    averaged, trained = second["objects"]["ema"], second["objects"]["denoiser"]
    assert any(not torch.equal(averaged[name], trained[name]) for name in averaged)


def test_every_epoch_draws_every_training_case_once_in_an_order_of_its_own(finished: Finished) -> None:
    for stage in STAGES:
        drawn = [cases for where, _, cases in finished.drawn if where == stage]
        epochs = [list(chain(*part)) for part in (drawn[: len(drawn) // 2], drawn[len(drawn) // 2 :])]
        assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(set(epochs[0]))
        assert epochs[0] != epochs[1]


def test_interrupted_in_both_stages_training_ends_as_it_would_have(
    finished: Finished, interrupted: Callable, tmp_path: Path
) -> None:
    go_on = interrupted(tmp_path)
    assert not (tmp_path / "models").exists(), "an unfinished first stage was taken for a finished one"
    drawn: Drawn = [entry for entry in finished.drawn if entry[0] == "autoencoder" and entry[1] < 5]
    train(drawn, stop=("diffusion", 6), **go_on)
    assert checkpoints(go_on["output_dir"], "diffusion")[-1].stem.endswith("5"), "not in the middle of an epoch"
    train(drawn, **go_on)
    assert [tuple(entry) for entry in drawn] == finished.drawn[: len(drawn)] and len(drawn) >= len(finished.drawn)
    assert_same_end(go_on["output_dir"], go_on["models_dir"], finished)


def test_of_a_truncated_checkpoint_the_one_before_is_used_and_that_is_reported(
    finished: Finished, interrupted: Callable, tmp_path: Path
) -> None:
    go_on = interrupted(tmp_path)
    before, newest = checkpoints(go_on["output_dir"])[-2:]
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    printed = run(BUNDLE, "train_autoencoder.yaml", **of_first_stage(go_on))
    assert f"checkpoint {newest} cannot be read" in printed and f"resuming from {before}" in printed
    assert_same_end(go_on["output_dir"], go_on["models_dir"], finished, ("autoencoder",))


def test_with_all_checkpoints_damaged_nothing_starts_afresh(interrupted: Callable, tmp_path: Path) -> None:
    go_on = interrupted(tmp_path)
    for path in checkpoints(go_on["output_dir"]):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0xFF  # a single wrong byte
        path.write_bytes(content)
    before = tree(Path(go_on["output_dir"]) / "autoencoder" / "checkpoints")
    line = last_line(BUNDLE, "train.yaml", **go_on)
    assert "none of the 2 checkpoints in" in line and "can be read" in line and "autoencoder/checkpoints" in line
    assert tree(Path(go_on["output_dir"]) / "autoencoder" / "checkpoints") == before
    assert not Path(go_on["models_dir"]).exists()


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"seed": 1}, "training: seed was 0, now 1."),
        ({"autoencoder_learning_rate": 1e-5}, "training: autoencoder_learning_rate was 1.875e-05, now 1e-05."),
        (
            {"autoencoder_final_lr": 0.1},
            "training: autoencoder_epochs was any, now 2; autoencoder_final_lr was 1.0, now 0.1.",
        ),
        ({"autoencoder_batch_size": 1}, "batch_size was 2, now 1"),
        (
            {"base_channels": 8, "patch_size": [8, 8, 12]},
            "base_channels was 4, now 8; patch_size was [16, 32, 12], now [8, 8, 12].",
        ),
        ({"autoencoder_def#codebook#decay": 0.5}, "training: autoencoder_def::codebook::decay was 0.99, now 0.5."),
        ({"loss#l1_weight": 1.0}, "training: loss::l1_weight was 4.0, now 1.0."),
        ({"val_interval": 2}, "training: val_interval was 1, now 2."),
        ({"dataset_dir": "other"}, "training: data was "),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_checkpoints_of_another_training_are_refused(
    interrupted: Callable, own_data: Path, tmp_path: Path, changed: dict, named: str
) -> None:
    go_on = interrupted(tmp_path / "run")
    if "dataset_dir" in changed:
        file = next(own_data.rglob("*.nii.gz"))
        os.replace(file, file.with_name("another_name.nii.gz"))
        changed = {"dataset_dir": str(own_data)}
    before = tree(tmp_path / "run" / "output" / "autoencoder" / "checkpoints")
    line = last_line(BUNDLE, "train.yaml", **go_on | changed)
    assert line.startswith("Stopped: CheckpointError: ") and named in line
    assert str(checkpoints(go_on["output_dir"])[-1]) in line
    assert tree(tmp_path / "run" / "output" / "autoencoder" / "checkpoints") == before


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"prediction_type": "sample"}, "prediction_type was epsilon, now sample"),
        ({"num_train_timesteps": 24}, "num_train_timesteps was 12, now 24"),
        ({"ema_decay": 0.5, "accumulation_steps": 1}, "accumulation_steps was 2, now 1; ema_decay was 0.995, now 0.5"),
        (
            {"train#preprocessing#transforms#0#flip_prob": 0.0},
            "train::preprocessing::transforms::0::flip_prob was 0.5, now 0.0",
        ),
        ({"final_lr": 0.5}, "epochs was any, now 2; final_lr was 1.0, now 0.5"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_checkpoints_of_another_diffusion_are_refused(
    finished: Finished, nifti_folder: Path, tmp_path: Path, changed: dict, named: str
) -> None:
    for folder in (finished.output, finished.models):
        shutil.copytree(folder, tmp_path / folder.name)
    line = last_line(BUNDLE, "train.yaml", **settings(tmp_path, nifti_folder) | changed)
    assert line.startswith("Stopped: CheckpointError: ") and f"is from another training: {named}." in line
    assert (tmp_path / "models" / "model.pt").read_bytes() == (finished.models / "model.pt").read_bytes()


def test_where_it_runs_and_how_often_it_saves_make_no_other_training(
    finished: Finished, nifti_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished.output, tmp_path / "output")
    shutil.copytree(finished.models, tmp_path / "models")
    shutil.copytree(nifti_folder, tmp_path / "data")
    places = {"device": "cpu", "num_workers": 1, "checkpoint_minutes": 3, "montage_interval": 7, "sampler": "dpmpp_2m"}
    drawn: Drawn = []
    train(drawn, **settings(tmp_path, tmp_path / "data", **places) | {"epochs": 3})
    assert [place for *place, _ in drawn] == [["diffusion", iteration] for iteration in (7, 8, 9)]


def test_more_epochs_than_planned_are_no_other_training(finished: Finished, nifti_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(finished.output, tmp_path / "output")
    drawn: Drawn = []
    first = of_first_stage(settings(tmp_path, nifti_folder))
    train(drawn, config="train_autoencoder.yaml", **first | {"autoencoder_epochs": 3})
    assert [iteration for _, iteration, _ in drawn] == [7, 8, 9]


KILLED_WHILE_IT_WRITES = """
import os, signal, sys
import torch
from pathlib import Path
import medical_diffusion_components.handlers.checkpoint as checkpoint

torch.set_num_threads(1)
save = checkpoint.save_tensors

def die(content, path):
    save(content, path)
    if content["iteration"] == 5:
        path.write_bytes(path.read_bytes()[:5000])
        os.kill(os.getpid(), signal.SIGKILL)

checkpoint.save_tensors = die
sys.path.insert(0, {tests!r})
from bundle_folders import run
run(Path({bundle!r}), "train.yaml", **{overrides!r})
"""


def hidden(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name.startswith(".") and path.name != ".lock"]


@pytest.mark.slow
def test_killed_while_it_writes_a_checkpoint_training_ends_as_it_would_have(
    finished: Finished, nifti_folder: Path, tmp_path: Path
) -> None:
    go_on = settings(tmp_path, nifti_folder, checkpoint_minutes=0)
    script = KILLED_WHILE_IT_WRITES.format(tests=str(Path(__file__).parent), bundle=str(BUNDLE), overrides=go_on)
    killed = python("-c", script)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    folder = Path(go_on["output_dir"]) / "autoencoder" / "checkpoints"
    assert [path.stem[-2:] for path in checkpoints(go_on["output_dir"])] == ["03", "04"]
    assert len(hidden(folder)) == 1, "the half of a checkpoint that it wrote"
    assert not Path(go_on["models_dir"]).exists()
    run(BUNDLE, "train_autoencoder.yaml", **of_first_stage(go_on))
    assert_same_end(go_on["output_dir"], go_on["models_dir"], finished, ("autoencoder",))
    assert not hidden(folder)


@pytest.mark.parametrize("prediction_type", ["sample", "flow"])
def test_interrupted_with_the_fast_recipe_training_ends_as_it_would_have(
    finished: Finished, nifti_folder: Path, tmp_path: Path, prediction_type: str
) -> None:
    """Scaled latents, warm-up, clipping, power-function average, stratified timesteps: all of them resume."""
    ends = []
    for name, stop in (("whole", None), ("interrupted", ("diffusion", 4))):
        shutil.copytree(finished.models, tmp_path / name / "models", ignore=shutil.ignore_patterns("model.*"))
        go_on = settings(tmp_path / name, nifti_folder, checkpoint_minutes=0)
        recipe = {
            "prediction_type": prediction_type,
            "accumulation_steps": 1,
            "ema_every": 1,
            "warmup_iterations": 3,
            "average_snapshots": 2,
        }
        drawn: Drawn = []
        for place in filter(None, (stop, ("none", 0))):
            train(drawn, place, ["train.yaml", "fast.yaml"], **go_on | recipe)
        assert {stage for stage, *_ in drawn} == {"diffusion"}
        last = torch.load(checkpoints(go_on["output_dir"], "diffusion")[-1], weights_only=True)
        ends.append((drawn, last, (tmp_path / name / "models" / "model.pt").read_bytes()))
    assert_same(*(last for _, last, _ in ends))
    assert ends[0][0] == ends[1][0] and ends[0][2] == ends[1][2]
    one, other = (tree(tmp_path / name / "output" / "diffusion" / "averages") for name in ("whole", "interrupted"))
    assert one == other and sorted(one) == [f"average_{step:09d}.pt" for step in (2, 4, 6)]
    chosen = post_hoc_average(tmp_path / "whole" / "output" / "diffusion" / "averages", gamma=10.0)
    assert chosen.keys() == ends[0][1]["objects"]["ema"].keys()
    weights = torch.load(tmp_path / "whole" / "models" / "model.pt", weights_only=True)
    assert weights["latent_scaling.shift"].std() > 0 and weights["latent_scaling.bound"] > 1
    assert int(weights["prediction"]) == PREDICTION_TYPES.index(prediction_type)
