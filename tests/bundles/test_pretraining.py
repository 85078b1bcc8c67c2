"""Pre-training by inpainting, end to end: training, inference and evaluation of ``swin_unetr_pretrain``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_folders import REPOSITORY, Trained, last_line, run, tiny, tree, undisturbed, workflow
from monai.inferers import SlidingWindowInferer
from monai.networks.nets import SwinUNETR
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_resume import Interrupted, assert_same

from medical_diffusion_components.handlers.seeding import SeedIterations
from medical_diffusion_components.reports.montages import ReconstructionMontage
from medical_diffusion_components.weights import save_weights

pytestmark = pytest.mark.slow  # most of these train

BUNDLE = REPOSITORY / "bundles" / "swin_unetr_pretrain"
GENERATOR = REPOSITORY / "bundles" / "adni_ldm"
NETWORK = {"feature_size": 12, "depths": [1, 1, 1, 1], "num_heads": [3, 6, 12, 24], "window_size": 2}
Train = Callable[[Path], Trained]


@pytest.fixture
def done(trained: Train) -> Trained:
    return trained(BUNDLE)


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ReconstructionMontage, "_draw", lambda *_: None)


def cohort(done: Trained, split: str) -> list[Path]:
    listed = next(done.output.glob("*/dataset.json"))
    return [listed.parent / case["image"] for case in json.loads(listed.read_text())[split]]


def folders(folder: Path) -> dict[str, str]:
    return {"output_dir": str(folder / "output"), "models_dir": str(folder / "models")}


def plain_network(done: Trained) -> SwinUNETR:
    network = SwinUNETR(in_channels=1, out_channels=1, **NETWORK)
    network.load_state_dict(torch.load(done.models / "model.pt", weights_only=True))
    return network.eval()


def scaled(path: Path) -> torch.Tensor:
    voxels = torch.from_numpy(nib.load(path).get_fdata(dtype=np.float32))
    return 2 * (voxels - voxels.min()) / (voxels.max() - voxels.min()) - 1


def test_weights_are_those_of_a_plain_swin_unetr_and_the_best_ones(done: Trained) -> None:
    plain_network(done)
    best = done.output / "pretraining" / "best_model.pt"
    assert best.read_bytes() == (done.models / "model.pt").read_bytes()
    note = json.loads((done.models / "model.json").read_text())
    assert note["sha256"] == hashlib.sha256(best.read_bytes()).hexdigest()
    assert note["data"] == "embedded template cohort" and "not patients" in note["notice"]
    assert note["validation"].keys() >= {"val_loss", "val_l1_masked", "val_l1_rest", "val_ms_ssim"}
    assert {path.name for path in done.models.iterdir()} == {"model.pt", "model.json"}


def test_training_leaves_curves_and_pictures(done: Trained) -> None:
    folder = done.output / "pretraining"
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) >= {
        "loss",
        "l1_masked",
        "l1_rest",
        "ms_ssim_loss",
        "val_loss",
        "val_l1_masked",
    }
    assert "reconstruction" in events.Tags()["images"]
    (picture,) = (folder / "pictures").glob("*.png")
    rows = np.array_split(np.asarray(Image.open(picture).convert("L")), 3)
    assert min(row.std() for row in rows) > 5  # masked, painted in, true


def test_inference_writes_masked_volumes_and_paints_in_their_holes_alone(done: Trained) -> None:
    network = plain_network(done)
    for path in cohort(done, "test"):
        whole = (scaled(path) + 1) * 127.5
        masked, painted = (
            nib.load(done.output / "inpainted" / f"{path.name[:-7]}_{name}.nii.gz") for name in ("masked", "inpainted")
        )
        np.testing.assert_allclose(masked.affine, nib.load(path).affine, atol=1e-4)
        holes = masked.get_fdata() == 127.5
        assert holes.mean() == pytest.approx(0.3, abs=1e-3)  # of the cohort's voxels few are grey by chance
        np.testing.assert_allclose(painted.get_fdata()[~holes], whole.numpy()[~holes], atol=1e-3)
        image = torch.from_numpy(masked.get_fdata(dtype=np.float32))[None, None] / 127.5 - 1
        with torch.no_grad():
            pred = SlidingWindowInferer((64, 32, 32), mode="gaussian")(image, network)[0, 0]
        expected = ((pred.clamp(-1, 1) + 1) * 127.5).numpy()
        np.testing.assert_allclose(painted.get_fdata()[holes], expected[holes], atol=0.1)


def test_reported_errors_are_those_of_the_test_split(done: Trained) -> None:
    network, masked_errors, kept_errors = plain_network(done), [], []
    for path in cohort(done, "test"):
        file = done.output / "inpainted" / f"{path.name[:-7]}_masked.nii.gz"
        image = torch.from_numpy(nib.load(file).get_fdata(dtype=np.float32))
        holes = image == 127.5
        with torch.no_grad():
            inferer = SlidingWindowInferer((64, 32, 32), mode="gaussian")
            error = (inferer(image[None, None] / 127.5 - 1, network)[0, 0] - scaled(path)).abs()
        masked_errors.append(error[holes].mean().item())
        kept_errors.append(error[~holes].mean().item())
    report = json.loads((done.output / "evaluation" / "evaluation.json").read_text())
    assert report["metrics"]["l1_masked"] == pytest.approx(np.mean(masked_errors), abs=2e-3)
    assert report["metrics"]["l1_rest"] == pytest.approx(np.mean(kept_errors), abs=2e-3)
    assert report["test_cases"] == len(masked_errors) and report["masks"]["share"] == 0.3
    assert f"l1_masked {report['metrics']['l1_masked']:.4g}" in done.printed["evaluate.yaml"]
    picture = np.asarray(Image.open(done.output / "evaluation" / "evaluation.png").convert("L"))
    assert picture.std() > 5


@pytest.fixture
def anisotropic(tmp_path: Path) -> Path:
    """Volumes whose voxel axes point left, down and to the front, with three voxel sizes, and larger than the window."""
    folder = tmp_path / "scans"
    folder.mkdir()
    affine = np.array([[-0.5, 0, 0, 3], [0, 0, 2.0, -7], [0, -1.5, 0, 11], [0, 0, 0, 1]])
    for number in range(6):
        rng = np.random.default_rng(number)
        voxels = np.kron(rng.random((9, 9, 5)), np.ones((8, 4, 8)))[:66, :36, :33]
        nib.save(nib.Nifti1Image((voxels * 900).astype(np.float32), affine), folder / f"head_{number}.nii.gz")
    return folder


def test_a_volume_comes_back_on_its_own_grid(done: Trained, anisotropic: Path, tmp_path: Path) -> None:
    models = {"models_dir": str(done.models), "output_dir": str(tmp_path / "output")}
    run(BUNDLE, "inference.json", **done.overrides | models, dataset_dir=str(anisotropic))
    written = list((tmp_path / "output" / "inpainted").glob("*_inpainted.nii.gz"))
    assert written
    for file in written:
        original, painted = nib.load(anisotropic / file.name.replace("_inpainted", "")), nib.load(file)
        masked = nib.load(str(file).replace("inpainted.nii", "masked.nii"))
        assert painted.shape == original.shape
        np.testing.assert_allclose(painted.affine, original.affine, atol=1e-5)
        kept = masked.get_fdata() != 127.5
        expected = (scaled(anisotropic / file.name.replace("_inpainted", "")).numpy() + 1) * 127.5
        np.testing.assert_allclose(painted.get_fdata()[kept], expected[kept], atol=1e-2)


def train(folder: Path, stop: int | None = None, **overrides: Any) -> list[tuple[int, list[str]]]:
    """Train, interrupted before iteration ``stop``; what was drawn, (iteration, cases)."""
    drawn, seed = [], SeedIterations.__call__

    def record(self: SeedIterations, engine: Any) -> None:
        if engine.state.iteration == stop:
            raise Interrupted
        drawn.append((engine.state.iteration, list(engine.state.batch["case_id"])))
        seed(self, engine)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SeedIterations, "__call__", record)
        try:
            run(BUNDLE, "train.yaml", **tiny(BUNDLE, **folders(folder), **overrides))
        except Exception as error:
            while error.__cause__ is not None:
                error = error.__cause__
            if not isinstance(error, Interrupted):
                raise
    return drawn


@pytest.mark.slow
def test_resumed_training_equals_uninterrupted(anisotropic: Path, tmp_path: Path, no_pictures: None) -> None:
    settings = {"dataset_dir": str(anisotropic), "epochs": 2, "batch_size": 1, "warmup_iterations": 2}
    settings["num_training_volumes"] = 2
    whole = train(tmp_path / "whole", **settings, final_lr=0.1)
    per_epoch = len(whole) // 2
    first = train(tmp_path / "parts", stop=per_epoch + 2, **settings, final_lr=0.1, checkpoint_minutes=0)
    second = train(tmp_path / "parts", **settings, final_lr=0.1, checkpoint_minutes=0)
    assert first + second == whole and first and second
    one, other = (
        torch.load(sorted((tmp_path / name / "output/pretraining/checkpoints").iterdir())[-1], weights_only=True)
        for name in ("whole", "parts")
    )
    assert_same(one, other, "checkpoint")
    for name in ("model.pt", "model.json"):
        assert (tmp_path / "whole/models" / name).read_bytes() == (tmp_path / "parts/models" / name).read_bytes()


def test_training_ends_when_it_has_converged_and_stays_ended(
    anisotropic: Path, tmp_path: Path, no_pictures: None
) -> None:
    """With a learning rate of 0 no validation can be better, since the masks of validation never change."""
    settings = {"dataset_dir": str(anisotropic), "epochs": 5, "learning_rate": 0.0, "patience": 1}
    settings["num_training_volumes"] = 2
    drawn = train(tmp_path, **settings)
    per_epoch = len(drawn) // 2
    assert [iteration for iteration, _ in drawn] == list(range(1, 2 * per_epoch + 1))
    assert json.loads((tmp_path / "models/model.json").read_text())["epoch"] == 1
    before = {name: content for name, content in tree(tmp_path).items() if name.endswith((".pt", ".json"))}
    assert train(tmp_path, **settings) == []
    assert before == {name: content for name, content in tree(tmp_path).items() if name.endswith((".pt", ".json"))}


@pytest.fixture
def generator(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """Settings to sample from an untrained generator of small volumes."""
    small = {
        "image_size": [64, 32, 32],
        "base_channels": 4,
        "compression": [4, 4, 4],
        "norm_groups": 4,
        "num_codes": 32,
        "denoiser_channels": 8,
        "channel_multipliers": [1, 2],
        "num_train_timesteps": 12,
        "sampler": "ddim",
        "num_inference_steps": 2,
        "models_dir": str(tmp_path / "generator"),
    }
    with undisturbed():
        network = workflow(GENERATOR, "inference.json", **small).parser.get_parsed_content("network_def")
    save_weights(network, tmp_path / "generator" / "model.pt", {"data": "embedded template cohort"})
    yield {"generator": str(GENERATOR), "generator_settings": small}


def test_volumes_can_be_sampled_while_training(generator: dict, tmp_path: Path, no_pictures: None) -> None:
    settings = {**generator, "num_sampled_volumes": 2, "num_sampled_held_out": 2, "epochs": 2}
    whole = train(tmp_path / "whole", **settings)
    assert len({case for _, cases in whole for case in cases}) == 4, "new volumes in every epoch"
    assert train(tmp_path / "parts", stop=2, **settings) + train(tmp_path / "parts", **settings) == whole
    one, other = (torch.load(tmp_path / name / "models/model.pt", weights_only=True) for name in ("whole", "parts"))
    assert_same(one, other, "weights")
    note = json.loads((tmp_path / "whole/models/model.json").read_text())
    assert note["data"].endswith("itself trained on: embedded template cohort") and note["steps"] == 2
    assert not list((tmp_path / "whole/output").glob("*/dataset.json")), "no embedded cohort beside it"


def test_sampled_training_validates_with_files_if_there_are_any(
    generator: dict, anisotropic: Path, tmp_path: Path
) -> None:
    overrides = tiny(BUNDLE, **folders(tmp_path), **generator, dataset_dir=str(anisotropic))
    with undisturbed():
        parser = workflow(BUNDLE, "train.yaml", **overrides).parser
        held_out, training = (parser.get_parsed_content(f"{part}::dataset") for part in ("validate", "train"))
        note = parser.get_parsed_content("made_from")
    assert all(case["case_id"].startswith("head_") for case in held_out)
    assert training[0]["case_id"].startswith("sampled_") and training[0]["image"].shape == (1, 64, 32, 32)
    assert note["data"].startswith("sampled") and note["held_out_sha256"]


@pytest.mark.parametrize("config", ["train.yaml", "evaluate.yaml", "inference.json"])
def test_a_volume_smaller_than_the_window_is_named(
    config: str, done: Trained, nifti_folder: Path, tmp_path: Path
) -> None:
    overrides = tiny(BUNDLE, **folders(tmp_path)) | {"dataset_dir": str(nifti_folder)}
    if config != "train.yaml":
        overrides["models_dir"] = str(done.models)
    line = last_line(BUNDLE, config, **overrides)
    assert line.startswith("Stopped: ") and str(nifti_folder) in line
    assert "expected at least 64x32x32 voxels, got 16x32x12" in line
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"dataset_dir": "/none"}, "the dataset folder /none does not exist"),
        ({"roi_size": [64, 48, 32]}, "roi_size must be three multiples of 32, at least one of them 64 or more"),
        ({"generator": "/none"}, "no configuration inference.json in /none/configs"),
        ({"num_mask_patches": 3}, "give either share or num_patches, got share 0.3, num_patches 3"),
        ({"patience": 0}, "patience must be at least 1 validation"),
        ({"mask_patch_sise": 3}, "did you mean mask_patch_size?"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_settings_are_named(wrong: dict, message: str, done: Trained, tmp_path: Path) -> None:
    data = {"dataset_dir": str(cohort(done, "test")[0].parents[1])}
    line = last_line(BUNDLE, "train.yaml", **tiny(BUNDLE, **folders(tmp_path)) | data | wrong)
    assert line.startswith("Stopped: ") and message in line
    assert not (tmp_path / "models").exists()


def test_without_weights_nothing_is_painted(tmp_path: Path) -> None:
    line = last_line(BUNDLE, "inference.json", **tiny(BUNDLE, **folders(tmp_path)))
    assert line.startswith("Stopped: WeightsError: expected weights at ") and str(tmp_path / "models") in line


def test_weights_of_another_size_are_named(done: Trained) -> None:
    line = last_line(BUNDLE, "evaluate.yaml", **done.overrides | {"feature_size": 24})
    assert line.startswith(
        f"Stopped: WeightsError: {done.models / 'model.pt'} was trained with feature_size 12, not 24"
    )


def test_network_in_and_out_are_as_declared() -> None:
    """The Model Zoo's check, at the declared size, with fewer channels."""
    with undisturbed():
        monai.bundle.verify_net_in_out(
            net_id="network_def",
            meta_file=str(BUNDLE / "configs" / "metadata.json"),
            config_file=str(BUNDLE / "configs" / "inference.json"),
            device="cpu",
            **NETWORK,
        )
        roi = workflow(BUNDLE, "inference.json").parser.get_parsed_content("roi_size")
    format = json.loads((BUNDLE / "configs" / "metadata.json").read_text())["network_data_format"]
    assert format["inputs"]["image"]["spatial_shape"] == format["outputs"]["pred"]["spatial_shape"] == roi
