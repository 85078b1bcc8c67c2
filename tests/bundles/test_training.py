"""One command trains both stages of a bundle and leaves what the next step needs."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from bundle_folders import Trained, for_bundles_with, run, tiny, tree, undisturbed, workflow
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

pytestmark = pytest.mark.slow  # most of these train

ldm = for_bundles_with("train_autoencoder.yaml", "train.yaml")
one_ldm = for_bundles_with("train_autoencoder.yaml", "train.yaml", at_most=1)
Train = Callable[[Path], Trained]


def state(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)


def note(path: Path) -> dict:
    return json.loads(path.with_suffix(".json").read_text())


@ldm
def test_weights_are_plain_state_dicts_of_the_networks(bundle: Path, trained: Train) -> None:
    done = trained(bundle)
    with undisturbed():
        parser = workflow(bundle, "train.yaml", **done.overrides).parser
        for name, id in (("model.pt", "network_def"), ("model_autoencoder.pt", "autoencoder_def")):
            wanted = parser.get_parsed_content(id).state_dict()
            assert {k: v.shape for k, v in state(done.models / name).items()} == {k: v.shape for k, v in wanted.items()}


@ldm
def test_the_generator_holds_the_first_stage_unchanged(bundle: Path, trained: Train) -> None:
    models = trained(bundle).models
    whole = state(models / "model.pt")
    assert all(torch.equal(whole[f"first_stage.{k}"], v) for k, v in state(models / "model_autoencoder.pt").items())


@ldm
def test_published_first_stage_is_the_best_one(bundle: Path, trained: Train) -> None:
    done = trained(bundle)
    best = done.output / "autoencoder" / "best_autoencoder.pt"
    assert best.read_bytes() == (done.models / "model_autoencoder.pt").read_bytes()
    assert note(best) == note(done.models / "model_autoencoder.pt")


@one_ldm
def test_the_published_first_stage_has_seen_the_discriminators(bundle: Path, tmp_path: Path) -> None:
    """Three epochs of two batches; discriminators of so much weight make the held-out objective worse."""

    def published(name: str, start: int) -> dict:
        folders = {"output_dir": str(tmp_path / name), "models_dir": str(tmp_path / name / "models")}
        changed = {"autoencoder_epochs": 3, "adversarial_start": start, "adversarial_warmup": 0}
        heavy = {"loss#volume_weight": 1000.0, "loss#feature_matching_weight": 1000.0}
        run(bundle, "train_autoencoder.yaml", **tiny(bundle, **folders, **changed, **heavy))
        return note(tmp_path / name / "models" / "model_autoencoder.pt")

    without, judged = published("without", 100), published("judged", 4)
    assert judged["epoch"] == 3  # the first four batches were without them
    assert judged["validation"]["val_objective"] > without["validation"]["val_objective"]


@ldm
def test_notes_tell_what_the_weights_were_made_from(bundle: Path, trained: Train) -> None:
    models = trained(bundle).models
    first, second = note(models / "model_autoencoder.pt"), note(models / "model.pt")
    for name, facts in (("model_autoencoder.pt", first), ("model.pt", second)):
        assert facts["sha256"] == hashlib.sha256((models / name).read_bytes()).hexdigest()
        assert facts["versions"]["torch"] == version("torch")
        assert facts["epoch"] == 1
    assert second["first_stage"] == first["sha256"]
    assert first["data_sha256"] == second["data_sha256"]
    assert np.isfinite(first["validation"]["val_ssim"]) and np.isfinite(second["validation"]["val_loss"])


@ldm
def test_without_data_the_embedded_cohort_is_announced_and_noted(bundle: Path, trained: Train) -> None:
    done = trained(bundle)
    facts = note(done.models / "model.pt")
    assert "No dataset_dir was given" in done.printed["train.yaml"]
    assert facts["data"].startswith("embedded ") and facts["notice"]
    assert facts["notice"] in done.printed["train.yaml"]
    listed = json.loads((Path(cohort(done)) / "dataset.json").read_text())
    assert facts["cases"] == {split: len(listed[split]) for split in ("training", "validation", "test")}


@ldm
def test_a_training_ends_with_where_its_weights_are(bundle: Path, trained: Train) -> None:
    done = trained(bundle)
    weights = done.models / "model.pt"
    *_, last = done.printed["train.yaml"].splitlines()
    assert f"training is complete: weights of epoch {note(weights)['epoch']} at {weights}" in last


@ldm
def test_training_leaves_curves_and_pictures(bundle: Path, trained: Train) -> None:
    output = trained(bundle).output
    for stage, scalars, picture in (
        ("autoencoder", {"l1", "perplexity", "val_psnr", "val_ssim", "val_perplexity"}, "reconstruction"),
        ("diffusion", {"loss", "val_loss"}, "samples"),
    ):
        events = EventAccumulator(str(output / stage / "tensorboard")).Reload()
        assert set(events.Tags()["scalars"]) >= scalars
        assert picture in events.Tags()["images"]
        for file in (output / stage / "pictures").glob("*.png"):
            assert np.asarray(Image.open(file).convert("L")).std() > 5


@ldm
def test_training_checked_its_latents_in_with_one_file_per_case(bundle: Path, trained: Train) -> None:
    done = trained(bundle)
    cases = note(done.models / "model.pt")["cases"]
    files = list((done.output / "latents").rglob("*.npy"))
    assert len(files) == cases["training"] + cases["validation"]
    with undisturbed():
        shape = workflow(bundle, "train.yaml", **done.overrides).parser.get_parsed_content("latent_shape")
    assert {np.load(file).shape for file in files} == {(2, *shape)}


@one_ldm
def test_the_same_command_after_the_end_changes_nothing(bundle: Path, trained: Train, tmp_path: Path) -> None:
    done = trained(bundle)
    copy = Path(shutil.copytree(done.folder, tmp_path / "copy"))
    moved = done.overrides | {"output_dir": str(copy / "output"), "models_dir": str(copy / "models")}
    run(bundle, "train.yaml", **moved)
    before, after = (
        {name: content for name, content in tree(folder).items() if name.endswith((".pt", ".npy", ".nii.gz"))}
        for folder in (done.folder, copy)
    )
    assert before == after


@for_bundles_with("train.yaml")
def test_monai_finds_all_properties_of_training(bundle: Path, trained: Train) -> None:
    with undisturbed():
        started = workflow(bundle, "train.yaml", **trained(bundle).overrides)
        started.initialize()
        assert started.check_properties() == []


@one_ldm
def test_asking_for_the_data_before_training_never_caches_latents_of_random_weights(
    bundle: Path, trained: Train, tmp_path: Path
) -> None:
    done = trained(bundle)
    with undisturbed():
        started = workflow(
            bundle, "train.yaml", **done.overrides | {"output_dir": str(tmp_path)}, dataset_dir=cohort(done)
        )
        started.initialize()
        started.check_properties()
    made, expected = (
        {file.name: file.read_bytes() for file in (output / "latents").rglob("*.npy")}
        for output in (tmp_path, done.output)
    )
    assert made.keys() <= expected.keys() and made
    assert all(content == expected[name] for name, content in made.items())


def cohort(done: Trained) -> str:
    """The folder of the embedded cohort that a training wrote."""
    return str(next(done.output.glob("*/dataset.json")).parent)


@for_bundles_with("train.yaml", at_most=1)
def test_nothing_is_written_relative_to_the_current_directory(
    bundle: Path, trained: Train, tmp_path: Path, monkeypatch
) -> None:
    done = trained(bundle)
    monkeypatch.chdir(tmp_path)
    run(bundle, "train.yaml", **done.overrides)
    assert list(tmp_path.iterdir()) == []


@one_ldm
def test_training_says_how_well_the_denoiser_knows_its_volumes_if_it_is_asked(
    bundle: Path, trained: Train, tmp_path: Path
) -> None:
    done = trained(bundle)
    (tmp_path / "models").mkdir()
    for file in done.models.glob("model_autoencoder.*"):
        shutil.copy(file, tmp_path / "models")
    where: dict = {"output_dir": str(tmp_path / "output"), "models_dir": str(tmp_path / "models")}
    where["num_embedded_subjects"] = 40  # so that there are two or more in the validation split
    run(bundle, "train.yaml", **{**done.overrides, **where}, stop_at_membership_auc=1.0)
    events = EventAccumulator(str(tmp_path / "output" / "diffusion" / "tensorboard")).Reload()
    found = [point.value for point in events.Scalars("membership_auc")]
    assert found and all(0 <= value <= 1 for value in found)
    events = EventAccumulator(str(done.output / "diffusion" / "tensorboard")).Reload()
    assert "membership_auc" not in events.Tags()["scalars"], "nobody had asked"
