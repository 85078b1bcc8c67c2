"""The GAN baseline trains, resumes and samples with the commands of the other bundles."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_folders import REPOSITORY, Trained, assert_same, read, run, tiny, undisturbed
from monai.bundle import run as run_bundle

from medical_diffusion_components.networks import AlphaWGANGenerator

pytestmark = pytest.mark.slow  # most of these train

BUNDLE = REPOSITORY / "bundles" / "adni_gan"
Train = Callable[[Path], Trained]


@pytest.fixture
def done(trained: Train) -> Trained:
    return trained(BUNDLE)


def test_training_leaves_the_generator_and_a_note(done: Trained) -> None:
    network = AlphaWGANGenerator((16, 48, 32), code_size=5, channels=8)
    network.load_state_dict(torch.load(done.models / "model.pt", weights_only=True))
    note = json.loads((done.models / "model.json").read_text())
    assert note["epoch"] == 1 and note["data"].startswith("embedded ")
    assert list((done.output / "gan" / "pictures").glob("samples_*.png"))


def test_samples_are_those_of_the_weights_and_the_seed(done: Trained) -> None:
    network = AlphaWGANGenerator((16, 48, 32), code_size=5, channels=8).eval()
    network.load_state_dict(torch.load(done.models / "model.pt", weights_only=True))
    files = sorted((done.output / "samples").glob("*.nii.gz"))
    assert len(files) == 3
    for seed, file in enumerate(files):
        code = torch.randn((5, 1, 1, 1), generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            expected = (network(code[None])[0, 0].numpy() + 1) * 127.5
        np.testing.assert_allclose(np.asarray(nib.load(file).dataobj), expected, atol=1e-3)
        assert json.loads(file.with_name(file.name.replace(".nii.gz", ".json")).read_text())["seed"] == seed


def test_resumed_training_equals_uninterrupted(tmp_path: Path) -> None:
    ends = {}
    for name, parts in (("whole", [3]), ("parts", [1, 3])):
        folders = {"output_dir": str(tmp_path / name / "output"), "models_dir": str(tmp_path / name / "models")}
        for epochs in parts:
            run(BUNDLE, "train.yaml", **tiny(BUNDLE, **folders, epochs=epochs, ema_decay=0.5))
        newest = max((tmp_path / name / "output" / "gan" / "checkpoints").glob("checkpoint_*.pt"))
        ends[name] = torch.load(newest, weights_only=True)["objects"]
    assert_same(ends["whole"], ends["parts"])


def test_it_is_judged_without_a_first_stage(done: Trained) -> None:
    report = json.loads((done.output / "evaluation" / "evaluation.json").read_text())
    assert report["rows"].keys() == {"synthetic", "training"} and report["n"]["synthetic"] == 3
    assert any("no first stage" in warning for warning in report["warnings"])
    assert (done.output / "evaluation" / "evaluation.html").is_file()


def test_its_numbers_are_recorded_without_a_sampler_and_a_first_stage(done: Trained, tmp_path: Path) -> None:
    config, copied = BUNDLE / "configs" / "evaluate.yaml", tmp_path / "metadata.json"
    copied.write_text((BUNDLE / "configs" / "metadata.json").read_text())
    values = {key: value for key, value in done.overrides.items() if key in read(config)}
    with undisturbed():
        run_bundle("recording", config_file=str(config), metadata_file=str(copied), **values)
    report = json.loads((done.output / "evaluation" / "evaluation.json").read_text())
    found = json.loads(copied.read_text())["eval_metrics"]
    assert found["weights_sha256"] == report["weights_sha256"] and not {"sampler", "first_stage"} & found.keys()
    assert found["volumes"]["ms_ssim"]["value"] == report["rows"]["synthetic"]["volumes"]["ms_ssim"]["value"]
