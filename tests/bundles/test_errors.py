"""Wrong inputs: the last line in the terminal names the file and the cause, and nothing that was there is lost."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_folders import Trained, bundles_with, last_line, read, run, tiny, tree, undisturbed, workflow

pytestmark = pytest.mark.slow  # most of these train

# One bundle is enough: test_shared_blocks.py holds the others to the same stages.
BUNDLE = bundles_with("train_autoencoder.yaml", "train.yaml")[0]
SIZE = (16, 32, 12)


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, str]:
    return {"output_dir": str(tmp_path / "output"), "models_dir": str(tmp_path / "models")}


def train(folders: dict[str, str], **overrides: Any) -> str:
    return last_line(BUNDLE, "train.yaml", **tiny(BUNDLE, **folders, **overrides))


def write(path: Path, voxels: np.ndarray) -> None:
    nib.save(nib.Nifti1Image(voxels.astype(np.float32), np.diag([1.5, 0.75, 2.5, 1])), path)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape)


def with_nan(path: Path) -> None:
    voxels = noise(*SIZE)
    voxels[3, 4, 5] = np.nan
    write(path, voxels)


def truncated(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


SPOILT = {
    "truncated": (truncated, "damaged or incomplete"),
    "no NIfTI": (
        lambda path: path.write_bytes(b"not an image"),
        "cannot be read as a NIfTI|Cannot work out file type",
    ),
    "2D": (lambda path: write(path, noise(16, 32)), r"got shape \(16, 32\): a single slice"),
    "4D": (lambda path: write(path, noise(*SIZE, 3)), r"got shape \(16, 32, 12, 3\): a time series"),
    "NaN": (with_nan, "got 1 of 6144 voxels that are NaN or infinite"),
    "constant": (lambda path: write(path, np.full(SIZE, 7)), "every voxel is 7"),
    "wrong size": (lambda path: write(path, noise(16, 32, 13)), "expected 16x32x12 voxels, got 16x32x13"),
}


@pytest.mark.parametrize("number", [1, 9], ids=["training", "held out"])
@pytest.mark.parametrize("kind", SPOILT)
def test_a_volume_that_cannot_be_used_is_named(kind: str, number: int, own_data: Path, folders: dict) -> None:
    spoil, cause = SPOILT[kind]
    file = next(own_data.rglob(f"head_{number}.nii.gz"))
    spoil(file)
    line = train(folders, dataset_dir=str(own_data))
    assert line.startswith("Stopped: ") and str(file) in line and re.search(cause, line)
    assert not Path(folders["models_dir"]).exists()


def test_a_volume_that_cannot_be_used_is_named_by_a_worker_process_too(own_data: Path, folders: dict) -> None:
    file = next(own_data.rglob("head_1.nii.gz"))
    truncated(file)
    line = train(folders, dataset_dir=str(own_data), num_workers=1, cache_rate=0.0)
    assert str(file) in line and "damaged or incomplete" in line


def test_an_empty_folder_is_named(tmp_path: Path, folders: dict) -> None:
    (tmp_path / "empty").mkdir()
    line = train(folders, dataset_dir=str(tmp_path / "empty"))
    assert line.startswith("Stopped: FileNotFoundError: no NIfTI files") and str(tmp_path / "empty") in line


def test_a_folder_that_is_not_there_is_never_replaced_by_other_data(folders: dict) -> None:
    line = train(folders, dataset_dir="/none")
    assert line.startswith("Stopped: FileNotFoundError: the dataset folder /none does not exist")
    assert not Path(folders["output_dir"]).exists()


@pytest.mark.parametrize("config", ["train.yaml", "inference.json", "evaluate.yaml"])
def test_a_setting_that_nobody_knows_is_named_with_its_neighbour(config: str, folders: dict) -> None:
    line = last_line(BUNDLE, config, **folders, num_code=32)
    assert line.startswith("Stopped: ValueError: --num_code is no setting of ")
    assert f"{BUNDLE.name}/configs" in line and line.endswith("did you mean num_codes?")
    assert not Path(folders["output_dir"]).exists()


@pytest.mark.parametrize("config", ["train.yaml", "inference.json", "evaluate.yaml"])
def test_a_switch_given_as_text_is_refused(config: str, folders: dict) -> None:
    for switch in ("amp", "audit_filter" if config == "inference.json" else "allow_synthetic"):
        line = last_line(BUNDLE, config, **folders, **{switch: "false"})
        assert line.startswith(f"Stopped: ValueError: --{switch} false: expected True or False, with a capital letter")


def test_a_setting_of_another_stage_is_no_typing_error(folders: dict) -> None:
    config = read(BUNDLE / "configs" / "train.yaml")
    assert "adversarial_start" not in config
    line = train(folders, dataset_dir="/none", adversarial_start=7)
    assert "/none does not exist" in line


@pytest.mark.parametrize(
    ("config", "changed", "users"),
    [
        ("inference.json", {"ema_decay": 0.1}, "train.yaml"),
        ("inference.json", {"perceptual_weight": 7}, "train_autoencoder.yaml"),
        ("evaluate.yaml", {"final_lr": 0.1}, "train.yaml"),
        ("train.yaml", {"samples_dir": "elsewhere"}, "audit.yaml, evaluate.yaml, inference.json"),
        ("train_autoencoder.yaml", {"learning_rate": 0.1}, "train.yaml"),
        ("inference.json", {"dataset_dir": "prepared"}, "audit.yaml, evaluate.yaml, evaluate_masks.yaml"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_setting_that_the_run_does_not_use_is_refused_naming_the_file_that_does(
    config: str, changed: dict, users: str, folders: dict
) -> None:
    line = last_line(BUNDLE, config, **folders, **changed)
    [id] = changed
    assert line.startswith(f"Stopped: ValueError: --{id} changes nothing in this run: it is a setting of {users}")
    assert not Path(folders["output_dir"]).exists()


@pytest.mark.parametrize(
    ("config", "changed", "why"),
    [
        ("inference.json", {"guidance_scale": 3.0}, "the weights have no conditions"),
        ("inference.json", {"min_patients_per_condition": 5}, "the weights have no conditions"),
        ("inference.json", {"max_draws": 3}, "audit_filter is off"),
        ("evaluate.yaml", {"conditions": {"age": 70}}, "the weights have no conditions"),
        ("evaluate.yaml", {"guidance_scales": [1, 2]}, "the weights have no conditions"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_setting_that_these_weights_leave_without_effect_is_refused(
    config: str, changed: dict, why: str, folders: dict
) -> None:
    line = last_line(BUNDLE, config, **folders, **changed)
    [id] = changed
    assert line == f"Stopped: ValueError: --{id} changes nothing in this run: {why}"
    assert not Path(folders["output_dir"]).exists()


@pytest.mark.parametrize("bundle", ["adni_ldm", "adni_gan"])
def test_settings_of_sampling_are_refused_where_the_volumes_are_given(bundle: str, folders: dict) -> None:
    given = {**folders, "samples_dir": folders["output_dir"], "num_volumes": 7}
    line = last_line(BUNDLE.parent / bundle, "evaluate.yaml", **given)
    said = "--num_volumes changes nothing in this run: the volumes are those of --samples_dir"
    assert line == f"Stopped: ValueError: {said}"


def test_another_spacing_than_that_of_the_training_is_remarked_on(folders: dict) -> None:
    given = {"output_dir": folders["output_dir"], "num_volumes": 1, "sampler": "ddim", "num_inference_steps": 1}
    for spacing, remarks in (([2.85, 2.86, 2.87], 0), ([0.5, 0.5, 0.5], 1)):
        printed = run(BUNDLE, "inference.json", **given, spacing=spacing)
        assert printed.count("the weights were trained with voxels of [2.859, 2.859, 2.859] mm") == remarks


@pytest.mark.parametrize("config", ["train.yaml", "train_autoencoder.yaml", "inference.json", "evaluate.yaml"])
def test_the_demo_overlay_serves_every_stage(config: str) -> None:
    with undisturbed():
        workflow(BUNDLE, [config, "demo.yaml"]).initialize()


def test_synthetic_volumes_are_not_put_among_patients(finished: Trained, own_data: Path) -> None:
    """The prepared folder where samples should go: nothing is written, and the next training sees what it saw before."""
    before = tree(own_data)
    line = last_line(BUNDLE, "inference.json", **finished.overrides | {"samples_dir": str(own_data)})
    assert line.startswith(f"Stopped: ValueError: {own_data} holds volumes that no note names as synthetic")
    assert "site_0/head_0.nii.gz" in line and tree(own_data) == before


def test_synthetic_volumes_are_not_trained_on_unless_asked(finished: Trained, tmp_path: Path) -> None:
    samples = finished.output / "samples"
    folders = {"output_dir": str(tmp_path / "new" / "output"), "models_dir": str(tmp_path / "new" / "models")}
    line = train(folders, dataset_dir=str(samples))
    assert line.startswith(f"Stopped: ValueError: 3 of the 3 volumes in {samples} are synthetic, first {samples}")
    assert not Path(folders["output_dir"]).exists()
    line = train(folders, dataset_dir=str(samples), allow_synthetic=True, autoencoder_learning_rate="none")
    assert "are synthetic" not in line


@pytest.fixture
def finished(trained: Callable[[Path], Trained], tmp_path: Path) -> Trained:
    """A copy of a trained bundle, whose checkpoints and weights must survive."""
    done = trained(BUNDLE)
    shutil.copytree(done.folder, tmp_path, dirs_exist_ok=True)
    folders = {"output_dir": str(tmp_path / "output"), "models_dir": str(tmp_path / "models")}
    return done._replace(folder=tmp_path, overrides=done.overrides | folders)


def kept(done: Trained) -> dict[str, bytes]:
    """Checkpoints, weights and notes."""
    return {name: content for name, content in tree(done.folder).items() if name.endswith((".pt", ".json"))}


@pytest.mark.parametrize("config", ["inference.json", "evaluate.yaml"])
def test_a_knob_that_the_weights_were_not_trained_with_is_named(config: str, finished: Trained) -> None:
    before = kept(finished)
    line = last_line(BUNDLE, config, **finished.overrides | {"base_channels": 8})
    assert line.startswith(
        f"Stopped: WeightsError: {finished.models / 'model.pt'} was trained with base_channels 4, not 8: leave"
    )
    assert kept(finished) == before


def test_weights_of_another_architecture_are_named_tensor_by_tensor(finished: Trained) -> None:
    before = kept(finished)
    line = last_line(BUNDLE, "train.yaml", **finished.overrides | {"base_channels": 8})
    file = "model_autoencoder.pt"
    assert line.startswith(f"Stopped: WeightsError: {finished.models / file} is from another architecture")
    assert re.search(r"encoder\.\S+: expected \(8, 1, 3, 3, 3\), got \(4, 1, 3, 3, 3\)", line)
    assert kept(finished) == before


def test_weights_of_the_invented_cohort_are_not_mixed_with_a_users_data(finished: Trained, nifti_folder: Path) -> None:
    before = kept(finished)
    line = last_line(BUNDLE, "train.yaml", **finished.overrides, dataset_dir=str(nifti_folder))
    assert line.startswith("Stopped: ValueError: the first stage ") and "trained on the embedded" in line
    assert str(finished.models / "model_autoencoder.pt") in line and str(nifti_folder) in line
    assert kept(finished) == before


@pytest.mark.parametrize("config", ["inference.json", "evaluate.yaml"])
def test_without_weights_there_are_no_samples(config: str, folders: dict) -> None:
    line = last_line(BUNDLE, config, **tiny(BUNDLE, **folders))
    assert line.startswith("Stopped: WeightsError: expected weights at ") or "No such file" in line
    assert str(Path(folders["models_dir"]) / "model.pt") in line


@pytest.mark.parametrize("config", ["train.yaml", "inference.json", "evaluate.yaml"])
def test_an_output_folder_that_cannot_be_made_is_named(config: str, finished: Trained, tmp_path: Path) -> None:
    """A file in place of the folder stands for missing permission, which root does not feel."""
    before = kept(finished)
    (tmp_path / "occupied").write_text("something else")
    data = {} if config == "inference.json" else {"dataset_dir": None}
    line = last_line(BUNDLE, config, **finished.overrides | data | {"output_dir": str(tmp_path / "occupied")})
    assert line.startswith("Stopped: ") and str(tmp_path / "occupied") in line
    assert "File exists" in line or "Not a directory" in line
    assert (tmp_path / "occupied").read_text() == "something else"
    assert kept(finished) == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small file system takes the rights of root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_is_named_and_the_checkpoint_before_stays(
    small_disk: Path, nifti_folder: Path, tmp_path: Path
) -> None:
    folders = {"output_dir": str(small_disk / "output"), "models_dir": str(tmp_path / "models")}
    line = train(folders, dataset_dir=str(nifti_folder), autoencoder_epochs=50, checkpoint_minutes=0)
    folder = small_disk / "output" / "autoencoder" / "checkpoints"
    checkpoints = sorted(path for path in folder.iterdir() if path.name != ".lock")
    assert line.startswith("Stopped: OSError: cannot write ") and "MiB free on its disk" in line
    assert str(small_disk) in line and "No space left" in line
    assert checkpoints and all(path.name.startswith("checkpoint_") for path in checkpoints)
    for path in checkpoints:
        assert torch.load(path, weights_only=True)["iteration"] == int(path.stem.removeprefix("checkpoint_"))
    assert not (tmp_path / "models").exists()
