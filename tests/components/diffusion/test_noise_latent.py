from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset
from scipy import stats

from medical_diffusion_components.diffusion.noise_latent import NoiseLatent, NoiseLatentd

SHAPE = (2, 3, 5, 4)


def numbered(numbers: list, **settings) -> list[dict]:
    transform = NoiseLatentd("image", SHAPE, **settings)
    return [transform({"image": number}) for number in numbers]


def test_noise_of_a_volume_is_that_of_its_seed():
    expected = torch.randn(SHAPE, generator=torch.Generator().manual_seed(40 + 3))
    assert torch.equal(NoiseLatent(SHAPE, seed=40)(3), expected)
    assert torch.equal(NoiseLatent(SHAPE, seed=43)(), expected)


def test_noise_is_standard_normal_and_the_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    noise = NoiseLatent((4, 10, 20, 30), seed=1)()
    assert torch.equal(before, torch.get_rng_state())
    assert stats.kstest(noise.flatten(), stats.norm.cdf).pvalue > 1e-3


def test_dictionary_form_writes_noise_and_seed_and_keeps_the_rest():
    [data] = [NoiseLatentd("image", SHAPE, seed=40, seed_key="drawn")({"image": 2, "other": "kept"})]
    assert data["drawn"] == 42 and data["other"] == "kept"
    assert torch.equal(data["image"], NoiseLatent(SHAPE, seed=42)())


def test_noise_of_a_volume_does_not_depend_on_its_batch():
    dataset = Dataset([{"image": n} for n in range(5)], NoiseLatentd("image", SHAPE, seed=7))
    noise = [torch.cat([b["image"] for b in DataLoader(dataset, batch_size=size, num_workers=0)]) for size in (1, 3)]
    assert torch.equal(*noise)
    assert len({row.sum().item() for row in noise[0]}) == 5


def test_whole_numbers_of_numpy_are_numbers_of_volumes():
    plain, numpy = numbered([3, np.int64(3)], seed=1)
    assert torch.equal(plain["image"], numpy["image"]) and numpy["seed"] == 4


def test_a_file_name_counts_as_volume_0(tmp_path):
    first, text, path = numbered([0, "scan.nii.gz", tmp_path / "scan.nii.gz"], seed=9)
    assert torch.equal(first["image"], text["image"]) and torch.equal(first["image"], path["image"])
    assert first["seed"] == text["seed"] == path["seed"] == 9


@pytest.mark.parametrize("value", [1.5, None, torch.zeros(2)])
def test_anything_else_is_an_error(value):
    with pytest.raises(ValueError, match="number of a volume or a file name at 'image'"):
        numbered([value])
