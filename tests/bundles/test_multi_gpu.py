"""Several processes train, resume and sample together as one does alone, at the same global batch.

Two processes on the CPU stand for any number of GPUs. Sums over processes are added up in another order than those over a
batch, hence the tolerances; what has none is equal to the bit.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import several_processes
import torch
from bundle_folders import assert_same, bundles_with, for_bundles_with, read, run, tiny, tree
from filelock import FileLock
from several_processes import (
    KILL,
    NOTES,
    STAGES,
    Iteration,
    bundle_arguments,
    environment,
    notes,
    taking_notes,
)
from warm_processes import MONAI_BUNDLE, torchrun

# One bundle is enough: test_shared_blocks.py holds the others to the same stages.
BUNDLE = bundles_with("train_autoencoder.yaml", "train.yaml", "multi_gpu_train.yaml")[0]
CONFIGS = ["train.yaml", "multi_gpu_train.yaml"]
LOSS_TOLERANCE = 1e-4  # relative, of every term in every iteration
WEIGHT_TOLERANCE = 1e-2  # of the learning rate, which is as far as Adam moves a weight in a step
pytestmark = pytest.mark.slow


class Job(NamedTuple):
    """A finished training of both stages."""

    folder: Path
    ranks: list[list[Iteration]]  # what each process noted

    def checkpoint(self, stage: str) -> dict:
        newest = max((self.folder / "output" / stage / "checkpoints").glob("checkpoint_*.pt"))
        return torch.load(newest, weights_only=True)


def settings(folder: Path, data: Path, processes: int) -> dict[str, Any]:
    """6 cases, global batches of 4 (first stage, so a smaller last one) and 2 (with a step left over), two epochs each."""
    rate = read(BUNDLE / "configs" / "train_autoencoder.yaml")["autoencoder_learning_rate"]
    folders = {"output_dir": str(folder / "output"), "models_dir": str(folder / "models"), "dataset_dir": str(data)}
    return tiny(
        BUNDLE,
        **folders,
        device="cpu",
        num_codes=2048,  # about as many as latents: many of them restart
        autoencoder_epochs=2,
        autoencoder_batch_size=4 // processes,
        autoencoder_learning_rate=rate.replace("3.0e-4", "1.0e-2"),
        adversarial_start=1,
        epochs=2,
        batch_size=2 // processes,
        learning_rate=1e-3,
        final_lr=0.1,
        held_out_timesteps=1,
        checkpoint_minutes=0,
    )


def start(folder: Path, data: Path, kill: str = "") -> subprocess.CompletedProcess:
    """The command that a cluster's job repeats until it is done, with two processes."""
    arguments = bundle_arguments(BUNDLE, "training", CONFIGS, settings(folder, data, 2))
    variables = environment(**{NOTES: str(folder / "notes"), KILL: kill})
    # of forked processes that have failed torchrun names the first rank, of others the one that failed first
    forked = not kill.startswith("1")
    return torchrun(2, several_processes.__file__, *arguments, cwd=folder, env=variables, forked=forked)


def job(folder: Path, processes: int) -> Job:
    return Job(folder, [notes(folder / "notes", "iterations", rank) for rank in range(processes)])


@pytest.fixture(scope="module")
def one(shared: Path, nifti_folder: Path) -> Job:
    folder = shared / "one_process"
    with FileLock(str(folder) + ".lock"):
        if not (folder / "models" / "model.pt").is_file():
            with taking_notes(folder / "notes"):
                run(BUNDLE, "train.yaml", **settings(folder, nifti_folder, 1))
    return job(folder, 1)


@pytest.fixture(scope="module")
def two(shared: Path, nifti_folder: Path) -> Job:
    folder = shared / "two_processes"
    folder.mkdir(exist_ok=True)
    with FileLock(str(folder) + ".lock"):
        if not (folder / "models" / "model.pt").is_file():
            done = start(folder, nifti_folder)
            assert done.returncode == 0, done.stderr[-3000:]
            (folder / "stderr.txt").write_text(done.stderr)
    return job(folder, 2)


def test_the_loss_curve_is_that_of_one_process(one: Job, two: Job) -> None:
    """Every term of every iteration, on both ranks; with them learning rates and the cases of the global batch."""
    [alone] = one.ranks
    assert [(i.stage, i.number) for i in alone] == [
        (stage, n + 1) for stage, m in zip(STAGES, (4, 6)) for n in range(m)
    ]
    assert {"feature_matching", "volume_discriminator"} <= alone[3].losses.keys(), "the discriminators take part"
    for expected, *ranks in zip(alone, *two.ranks, strict=True):
        assert sorted(sum((rank.cases for rank in ranks), [])) == sorted(expected.cases)
        for rank in ranks:
            assert rank.learning_rate == pytest.approx(expected.learning_rate, rel=1e-12)
            assert rank.losses == pytest.approx(expected.losses, rel=LOSS_TOLERANCE, abs=LOSS_TOLERANCE)


@pytest.mark.parametrize("stage", STAGES)
def test_the_weights_are_those_of_one_process(stage: str, one: Job, two: Job) -> None:
    """Networks, codebook, discriminators with the statistics of their batch norm, averages, optimisers, schedule."""
    found, expected = two.checkpoint(stage), one.checkpoint(stage)
    assert found["iteration"] == expected["iteration"]
    assert found["objects"].keys() == expected["objects"].keys()
    rate = {"autoencoder": "autoencoder_learning_rate", "diffusion": "learning_rate"}[stage]
    tolerance = WEIGHT_TOLERANCE * expected["settings"][rate]
    for name, state in expected["objects"].items():
        torch.testing.assert_close(found["objects"][name], state, rtol=LOSS_TOLERANCE, atol=tolerance)
    # but for the hash of the first stage, whose last digits depend on who added up what
    here, there = ({k: v for k, v in each["settings"].items() if k != "first_stage"} for each in (found, expected))
    assert here == there, "so that either could resume from the other's"


def test_every_rank_holds_the_same_network_and_codebook_after_every_iteration(one: Job, two: Job) -> None:
    first, second = two.ranks
    assert [i.state for i in first] == [i.state for i in second]
    assert len({i.state for i in first if i.stage == "autoencoder"}) == 4, "they learn"
    restarted = [i.restarted for i in one.ranks[0]]
    assert [i.restarted for i in first] == [i.restarted for i in second] == restarted and sum(restarted) > 10


def test_every_latent_is_cached_by_one_rank(two: Job) -> None:
    written = [notes(two.folder / "notes", "latents", rank) for rank in range(2)]
    cached = [file.name for file in (two.folder / "output" / "latents").rglob("*") if file.is_file()]
    assert sorted(sum(written, [])) == sorted(cached) == sorted(set(cached))
    assert min(map(len, written)) >= 4, "both have worked"


def test_the_first_rank_alone_writes_curves_and_reports(two: Job) -> None:
    for stage in STAGES:
        writers = {file.name.split(".")[-2] for file in (two.folder / "output" / stage).rglob("events*")}
        assert len(writers) == 1, "process numbers, of which TensorBoard would mix the curves"


def test_no_warning_tells_of_a_schedule_that_goes_before_its_optimiser(two: Job) -> None:
    assert "lr_scheduler.step()" not in (two.folder / "stderr.txt").read_text()


def test_a_killed_rank_ends_the_job_and_the_same_command_ends_it_as_if_nothing_had_been(
    two: Job, nifti_folder: Path, tmp_path: Path
) -> None:
    """Either rank dies, in either stage, in the middle of an epoch; the second time between two optimiser steps."""
    for number, kill in enumerate(("1 autoencoder 4", "0 diffusion 6")):
        done = start(tmp_path, nifti_folder, kill)
        ended, died = time.time(), max(sum((notes(tmp_path / "notes", "deaths", rank) for rank in range(2)), []))
        assert done.returncode != 0 and "SIGKILL" in done.stderr
        assert ended - died < 90, "seconds until the job ended with an error"
        assert (tmp_path / "models" / "model_autoencoder.pt").exists() == bool(number)
    done = start(tmp_path, nifti_folder)
    assert done.returncode == 0, done.stderr[-3000:]
    for stage in STAGES:
        assert_same(job(tmp_path, 2).checkpoint(stage), two.checkpoint(stage))
    for name in ("model.pt", "model_autoencoder.pt", "model.json", "model_autoencoder.json"):
        assert (tmp_path / "models" / name).read_bytes() == (two.folder / "models" / name).read_bytes()


def test_one_process_goes_on_where_two_stopped(two: Job, nifti_folder: Path, tmp_path: Path) -> None:
    """At the same global batch."""
    copied = Path(shutil.copytree(two.folder / "output", tmp_path / "output"))
    shutil.copytree(two.folder / "models", tmp_path / "models")
    (tmp_path / "models" / "model.pt").unlink()
    for stage in STAGES[1:]:
        max((copied / stage / "checkpoints").iterdir()).unlink()
    with taking_notes(tmp_path / "notes"):
        run(BUNDLE, "train.yaml", **settings(tmp_path, nifti_folder, 1))
    assert [(i.stage, i.number) for i in job(tmp_path, 1).ranks[0]] == [("diffusion", 6)]
    found, expected = (one.checkpoint("diffusion")["objects"]["denoiser"] for one in (job(tmp_path, 1), two))
    torch.testing.assert_close(found, expected, rtol=LOSS_TOLERANCE, atol=WEIGHT_TOLERANCE * 1e-3)


def test_processes_sample_what_one_does(two: Job, nifti_folder: Path, tmp_path: Path) -> None:
    """Of three processes one has nothing to do."""
    overrides = settings(two.folder, nifti_folder, 1) | {"num_volumes": 2}
    overrides = {id: value for id, value in overrides.items() if id in read(BUNDLE / "configs" / "inference.json")}
    overrides.pop("dataset_dir")
    run(BUNDLE, "inference.json", **overrides | {"samples_dir": str(tmp_path / "one")})
    arguments = bundle_arguments(
        BUNDLE, "inference", ["inference.json"], overrides | {"samples_dir": tmp_path / "three"}
    )
    done = torchrun(3, MONAI_BUNDLE, *arguments, cwd=tmp_path, env=environment())
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("montage: ") == 1
    found, expected = tree(tmp_path / "three"), tree(tmp_path / "one")
    assert found.keys() == expected.keys() and len(expected) == 5, "two volumes, two notes, a montage"
    for name, content in expected.items():
        if name.endswith(".json"):
            notes_of = [{**json.loads(text), "seconds": None} for text in (found[name], content)]
            assert notes_of[0] == notes_of[1]
        else:
            assert found[name] == content, name


@for_bundles_with("multi_gpu_train.yaml")
def test_a_process_takes_the_device_and_joins_the_group_that_torchrun_gives_it(bundle: Path) -> None:
    overlay = read(bundle / "configs" / "multi_gpu_train.yaml")
    start, join = overlay["initialize"]
    assert "start_run(" in start and join == "$distributed.join_processes()"
    assert overlay["finalize"] == ["$distributed.leave_processes()"]
    assert "device" not in overlay and read(bundle / "configs" / "train.yaml")["device"] == "$distributed.own_device()"


@for_bundles_with("train_autoencoder.yaml", "multi_gpu_train.yaml")
def test_the_overlay_distributes_the_very_modules_that_one_process_trains(bundle: Path) -> None:
    overlay = read(bundle / "configs" / "multi_gpu_train.yaml")
    found = {
        "train_autoencoder.yaml": ("autoencoder", "slice_discriminator", "volume_discriminator"),
        "train.yaml": ("denoiser",),
    }
    for file, ids in found.items():
        for id in ids:
            module = overlay[id]["module"]
            module = module["module"] if isinstance(module, dict) else module  # batch norm exchanged on the way
            assert module == read(bundle / "configs" / file)[id]
