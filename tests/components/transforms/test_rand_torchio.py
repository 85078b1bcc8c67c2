from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torchio
from monai.data import MetaTensor
from monai.transforms import Compose

from medical_diffusion_components.data.loading import SeededDataset
from medical_diffusion_components.transforms.rand_torchio import RandTorchIOd

AFFINE = torch.tensor(
    [[0.0, 2.0, 0.0, 5.0], [-1.0, 0.0, 0.0, 7.0], [0.0, 0.0, 3.0, -9.0], [0.0, 0.0, 0.0, 1.0]]
).double()
SPATIAL = {
    "flip": torchio.RandomFlip(axes=[0, 1, 2], flip_probability=0.7),
    "affine": torchio.RandomAffine(scales=0.1, degrees=10, translation=5),
}
INTENSITY = {
    "ghosting": torchio.RandomGhosting(num_ghosts=(2, 6), intensity=(0.1, 0.4)),
    "noise": torchio.RandomNoise(std=(0.01, 0.05)),
    "blur": torchio.RandomBlur(std=(0.5, 1.0)),
    "bias field": torchio.RandomBiasField(coefficients=0.3),
    "gamma": torchio.RandomGamma(log_gamma=(0.1, 0.3)),
}
ALL = SPATIAL | INTENSITY


def case() -> dict:
    """Two overlapping boxes as labels 1 and 2 in 10 x 20 x 30 voxels; the image is the label, scaled to [-1, 1]."""
    label = torch.zeros(1, 10, 20, 30)
    label[:, 2:7, 4:15, 5:21] = 1
    label[:, 4:9, 9:18, 14:27] = 2
    return {
        "image": MetaTensor(label - 1, affine=AFFINE, meta={"filename_or_obj": "a.nii.gz"}),
        "label": MetaTensor(label.clone(), affine=AFFINE),
    }


def augmented(transform: torchio.Transform, seed: int = 3, **options) -> dict:
    wrapped = RandTorchIOd("image", transform, label_keys="label", **options)
    return wrapped.set_random_state(seed=seed)(case())


def test_a_transform_that_changes_the_grid_changes_the_affine() -> None:
    made, origin = augmented(torchio.Crop((1, 0, 2, 0, 3, 0))), AFFINE @ torch.tensor([1.0, 2, 3, 1]).double()
    for name in ("image", "label"):
        assert made[name].shape == (1, 9, 18, 27)
        torch.testing.assert_close(made[name].affine[:, 3], origin)


@pytest.mark.parametrize("name", SPATIAL)
def test_what_moves_the_image_moves_the_label_alike(name: str) -> None:
    """The image is made from the label, and linear interpolation passes one half where the nearest voxel changes."""
    for seed in range(5):
        made = augmented(SPATIAL[name], seed)
        label, again = made["label"].as_tensor(), (made["image"].as_tensor() + 1)
        assert set(label.unique().tolist()) <= {0.0, 1.0, 2.0}
        assert ((again - label).abs() <= 1 + 1e-4).float().mean() > 0.99
        surely = (again - again.round()).abs() < 1e-4  # inside a structure, where all eight neighbours agree
        assert surely.float().mean() > 0.5
        assert (again.round() == label)[surely].float().mean() > 0.98


@pytest.mark.parametrize("name", INTENSITY)
def test_what_changes_intensities_leaves_the_label_and_its_place(name: str) -> None:
    made = augmented(INTENSITY[name])
    assert torch.equal(made["label"].as_tensor(), case()["label"].as_tensor())
    image, before = made["image"].as_tensor(), case()["image"].as_tensor()
    assert (image - before).abs().max() > 0.005
    label = made["label"]
    means = [float(image[label == value].mean()) for value in range(3)]
    assert means[0] < means[1] < means[2], "structures stay where the label says"


@pytest.mark.parametrize("name", ALL)
def test_shape_kind_affine_and_metadata_are_kept(name: str) -> None:
    made = augmented(ALL[name])
    for key in ("image", "label"):
        assert isinstance(made[key], MetaTensor) and made[key].shape == (1, 10, 20, 30)
        assert made[key].dtype == torch.float32
        torch.testing.assert_close(made[key].affine, AFFINE)
    assert made["image"].meta["filename_or_obj"] == "a.nii.gz"


@pytest.mark.parametrize("name", ["bias field", "gamma"])
def test_air_stays_dark(name: str) -> None:
    """On [-1, 1] itself the bias field would brighten and darken air as it does tissue, and gamma turn the middle over."""
    made = augmented(ALL[name])
    air = case()["label"].as_tensor() == 0
    torch.testing.assert_close(made["image"].as_tensor()[air], torch.full((int(air.sum()),), -1.0))


def test_gamma_is_a_power_of_the_magnitude() -> None:
    ramp = torch.linspace(-1, 1, 60).reshape(1, 3, 4, 5)
    made = RandTorchIOd("image", torchio.RandomGamma(log_gamma=(0.3, 0.3)))({"image": ramp})["image"]
    torch.testing.assert_close((made + 1) / 2, ((ramp + 1) / 2) ** float(np.exp(0.3)), atol=1e-5, rtol=0)


def test_what_an_affine_moves_in_is_the_minimum() -> None:
    made = augmented(torchio.RandomAffine(scales=0, degrees=0, translation=(8, 8, 0, 0, 0, 0)))
    assert float(made["image"].min()) == -1.0 and float(made["label"].min()) == 0.0


@pytest.mark.parametrize("name", ALL)
def test_the_draw_follows_from_monais_random_state_alone(name: str) -> None:
    torch.manual_seed(1)
    one = augmented(ALL[name], seed=5)["image"]
    torch.manual_seed(2)
    same, other = augmented(ALL[name], seed=5)["image"], augmented(ALL[name], seed=8)["image"]
    assert torch.equal(one.as_tensor(), same.as_tensor())
    assert not torch.equal(one.as_tensor(), other.as_tensor())


def test_torchs_own_random_state_is_put_back() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    augmented(torchio.RandomNoise())
    assert torch.equal(torch.rand(3), expected)


def test_probability_is_that_of_the_torchio_transform() -> None:
    wrapped = RandTorchIOd("image", torchio.RandomNoise(p=0.3)).set_random_state(seed=0)
    image = torch.linspace(-1, 1, 24).reshape(1, 2, 3, 4)
    changed = [not torch.equal(wrapped({"image": image})["image"], image) for _ in range(300)]
    assert 0.22 < np.mean(changed) < 0.38


@pytest.mark.parametrize("workers", [0, 2])
def test_a_seeded_dataset_makes_it_independent_of_workers_and_order(workers: int) -> None:
    images = [{"image": torch.rand(1, 4, 5, 6, generator=torch.Generator().manual_seed(n))} for n in range(4)]
    transform = Compose([RandTorchIOd("image", t) for t in INTENSITY.values()])
    dataset = SeededDataset(images, transform, seed=7)
    expected = [dataset[index]["image"] for index in (3, 1, 0, 2)]
    loader = torch.utils.data.DataLoader(dataset, batch_size=None, sampler=[3, 1, 0, 2], num_workers=workers)
    assert all(torch.equal(item["image"], one) for item, one in zip(loader, expected))


def test_anything_but_a_transform_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a TorchIO transform"):
        RandTorchIOd("image", "RandomFlip")
    with pytest.raises(ValueError, match="intensity range"):
        RandTorchIOd("image", torchio.RandomFlip(), intensity_range=[1, 1])
