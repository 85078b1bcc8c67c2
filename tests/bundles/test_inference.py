"""``inference.json``: volumes with a true affine, a note beside each, and the same volume for the same seed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import monai
import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_folders import TINY, Trained, for_bundles_with, read, run, tiny, undisturbed, workflow
from PIL import Image

from medical_diffusion_components.weights import load_weights

pytestmark = pytest.mark.slow  # most of these train

generators = for_bundles_with("train_autoencoder.yaml", "inference.json")
one_generator = for_bundles_with("train_autoencoder.yaml", "inference.json", at_most=1)
Train = Callable[[Path], Trained]
ANCESTRAL = {"sampler": "ddpm", "num_inference_steps": 12}


@pytest.fixture
def samples(trained: Train, tmp_path: Path) -> Callable[..., Path]:
    """Sample into a new folder and return it."""

    def sample(bundle: Path, name: str, **overrides) -> Path:
        run(bundle, "inference.json", **trained(bundle).overrides | overrides, samples_dir=str(tmp_path / name))
        return tmp_path / name

    return sample


def voxels(folder: Path) -> dict[str, np.ndarray]:
    return {file.name: np.asarray(nib.load(file).dataobj) for file in sorted(folder.glob("*.nii.gz"))}


@generators
def test_a_folder_of_samples_holds_volumes_notes_and_a_montage(bundle: Path, trained: Train) -> None:
    folder = trained(bundle).output / "samples"
    stems = {f"synthetic_{seed:06d}" for seed in range(3)}
    expected = {f"{stem}{suffix}" for stem in stems for suffix in (".nii.gz", ".json")} | {"montage.png"}
    assert {file.name for file in folder.iterdir()} == expected


@generators
def test_synthetic_volumes_lie_in_the_world_as_the_training_data_do(bundle: Path, trained: Train) -> None:
    done = trained(bundle)
    cohort = next(done.output.glob("*/dataset.json"))
    cases = json.loads(cohort.read_text())["training"]
    spacing = np.median([world_spacing(nib.load(cohort.parent / case["image"]).affine) for case in cases], axis=0)
    for file in (done.output / "samples").glob("*.nii.gz"):
        image = nib.load(file)
        assert image.shape == tuple(done.overrides["image_size"])
        assert "".join(nib.aff2axcodes(image.affine)) == read(bundle / "configs" / "train.yaml")["axcodes"]
        assert (image.affine[:3, :3] != 0).sum() == 3, "axes along those of the world"
        np.testing.assert_allclose(world_spacing(image.affine), spacing, rtol=1e-4)
        assert image.header.get_xyzt_units()[0] == "mm"
        centre = image.affine @ [*(np.array(image.shape) - 1) / 2, 1]
        np.testing.assert_allclose(centre[:3], 0, atol=1e-3)


def world_spacing(affine: np.ndarray) -> np.ndarray:
    """Voxel size along left-right, posterior-anterior and inferior-superior, for axes along those of the world."""
    return np.abs(affine[:3, :3]).max(axis=1)


@generators
def test_intensities_are_within_the_declared_range_and_no_constant(bundle: Path, trained: Train) -> None:
    for volume in voxels(trained(bundle).output / "samples").values():
        assert volume.min() >= 0 and volume.max() <= 255
        assert volume.std() > 1


@generators
def test_the_note_tells_how_to_make_the_volume_again(bundle: Path, trained: Train) -> None:
    done = trained(bundle)
    version = json.loads((bundle / "configs" / "metadata.json").read_text())["version"]
    for seed in range(3):
        note = json.loads((done.output / "samples" / f"synthetic_{seed:06d}.json").read_text())
        assert note["seed"] == seed
        assert (note["sampler"], note["steps"]) == ("ddim", 2)
        assert note["weights_sha256"] == hashlib.sha256((done.models / "model.pt").read_bytes()).hexdigest()
        assert note["bundle"] == f"{bundle.name} {version}"
        assert note["versions"]["monai"] == monai.__version__
        assert note["seconds"] > 0
        assert note["trained_on"].startswith("embedded ") and "not patients" in note["notice"]


@generators
def test_the_montage_shows_something(bundle: Path, trained: Train) -> None:
    picture = np.asarray(Image.open(trained(bundle).output / "samples" / "montage.png").convert("L"))
    assert min(picture.shape) > 200 and picture.std() > 10
    columns = np.array_split(picture[:, picture.shape[1] // 5 :], 3, axis=1)
    assert min(column.std() for column in columns) > 5  # every volume is there


@one_generator
@pytest.mark.parametrize("sampler", [{}, ANCESTRAL], ids=["ddim", "ddpm"])
def test_a_seed_makes_one_volume_whatever_the_batch(bundle: Path, samples: Callable, sampler: dict) -> None:
    alone = voxels(samples(bundle, "alone", num_volumes=3, inference_batch_size=1, **sampler))
    batch = voxels(samples(bundle, "batch", num_volumes=3, inference_batch_size=3, **sampler))
    later = voxels(samples(bundle, "later", num_volumes=1, seed=2, **sampler))
    for name, volume in alone.items():
        # the last digit, which does depend on the batch, may decide between two codes of a position
        assert np.abs(batch[name] - volume).mean() < 0.5, "of 255"
    np.testing.assert_array_equal(later["synthetic_000002.nii.gz"], alone["synthetic_000002.nii.gz"])


@one_generator
def test_seeds_and_samplers_differ(bundle: Path, trained: Train, samples: Callable) -> None:
    made = voxels(trained(bundle).output / "samples")
    for one, other in combinations(made.values(), 2):
        assert np.abs(one - other).mean() > 2
    ancestral = voxels(samples(bundle, "ancestral", num_volumes=1, **ANCESTRAL))["synthetic_000000.nii.gz"]
    assert np.abs(ancestral - made["synthetic_000000.nii.gz"]).mean() > 2


@for_bundles_with("inference.json")
def test_monai_finds_all_properties_of_inference(bundle: Path, trained: Train) -> None:
    with undisturbed():
        started = workflow(bundle, "inference.json", **trained(bundle).overrides)
        started.initialize()
        assert started.check_properties() == []


@generators
def test_network_in_and_out_are_as_declared(bundle: Path) -> None:
    """The Model Zoo's check, at the declared sizes, with fewer channels and steps."""
    fewer = {"base_channels", "norm_groups", "num_codes", "denoiser_channels", "sampler", "num_inference_steps"}
    with undisturbed():
        monai.bundle.verify_net_in_out(
            net_id="network_def",
            meta_file=str(bundle / "configs" / "metadata.json"),
            config_file=str(bundle / "configs" / "inference.json"),
            device="cpu",
            **{id: value for id, value in tiny(bundle).items() if id in fewer},
        )


@one_generator
def test_torchscript_alone_synthesises_what_the_bundle_does(bundle: Path, trained: Train, tmp_path: Path) -> None:
    done = trained(bundle)
    with undisturbed():
        monai.bundle.ckpt_export(
            net_id="network_def",
            filepath=str(tmp_path / "model.ts"),
            ckpt_file=str(done.models / "model.pt"),
            config_file=str(bundle / "configs" / "inference.json"),
            meta_file=str(bundle / "configs" / "metadata.json"),
            **{id: value for id, value in done.overrides.items() if not id.endswith("_dir")},
        )
        exported = torch.jit.load(str(tmp_path / "model.ts"))
        eager = workflow(bundle, "inference.json", **done.overrides).parser.get_parsed_content("network_def").eval()
    load_weights(eager, done.models / "model.pt")
    noise = torch.randn(eager.first_stage.latent_shape(TINY["image_size"]), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        volume, latent = exported(noise[None]), exported.sample_latent(noise[None])
        torch.testing.assert_close(latent, eager.sample_latent(noise[None]), atol=2e-3, rtol=0)
        # from one and the same latent: the last digit of another may be nearer to another code
        torch.testing.assert_close(volume, eager.first_stage.decode_stage_2_outputs(latent), atol=1e-4, rtol=0)
    written = voxels(done.output / "samples")["synthetic_000002.nii.gz"]
    assert np.abs((volume[0, 0].clamp(-1, 1).numpy() + 1) * 127.5 - written).mean() < 0.5
