from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import CacheDataset
from monai.transforms import Compose
from scipy import stats

from medical_diffusion_components.transforms.load_latent import RandLoadLatent, RandLoadLatentd


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    array = np.random.default_rng(0).normal(size=(2, 3, 4, 5, 6)).astype(np.float32)
    np.save(tmp_path / "pair.npy", array)
    return tmp_path / "pair.npy"


def choices(path: Path, seed: int = 0, prob: float = 0.5, count: int = 300) -> list[int]:
    """Which of the two latents came, time after time."""
    load = RandLoadLatentd("image", prob).set_random_state(seed)
    plain, mirrored = torch.from_numpy(np.load(path))
    loaded = [load({"image": str(path)})["image"] for _ in range(count)]
    assert all(torch.equal(latent, plain) or torch.equal(latent, mirrored) for latent in loaded)
    return [int(torch.equal(latent, mirrored)) for latent in loaded]


@pytest.mark.parametrize("prob, expected", [(0.0, 0), (1.0, 300)])
def test_without_chance_it_is_always_the_plain_or_always_the_mirrored_latent(pair, prob, expected):
    assert sum(choices(pair, prob=prob)) == expected


def test_mirrored_latent_comes_with_the_given_probability(pair):
    assert stats.binomtest(sum(choices(pair, prob=0.3)), 300, 0.3).pvalue > 1e-3


def test_choice_follows_from_the_seed_alone(pair):
    first = choices(pair, seed=4)
    np.random.seed(1)  # noqa: NPY002 (MONAI's random state must not follow it)
    assert first == choices(pair, seed=4) != choices(pair, seed=5)


def test_seed_of_a_composition_reaches_the_choice_and_nothing_is_cached(pair):
    def loaded(seed: int) -> list[float]:
        transform = Compose([RandLoadLatentd("image")]).set_random_state(seed)
        dataset = CacheDataset([{"image": str(pair)}], transform, cache_rate=1.0, progress=False)
        return [dataset[0]["image"].sum().item() for _ in range(12)]

    assert loaded(1) == loaded(1) != loaded(2)
    assert len(set(loaded(1))) == 2


def test_latent_is_a_copy_that_may_be_changed(pair):
    load = RandLoadLatent(0.0)
    load(str(pair)).zero_()
    assert load(str(pair)).abs().sum() > 0


@pytest.mark.parametrize("share", [0.0, 0.005, 0.03, 0.1, 0.5, 0.999])
def test_a_truncated_file_is_reported_with_its_name_and_the_remedy(pair, share):
    content = pair.read_bytes()
    pair.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"pair\.npy is no cached latent .*delete it, and it is made again"):
        RandLoadLatent()(str(pair))


def test_a_file_of_something_else_is_reported(pair):
    pair.write_bytes(b"no array at all")
    with pytest.raises(ValueError, match=r"pair\.npy is no cached latent"):
        RandLoadLatent()(str(pair))
    np.save(pair, np.zeros((3, 4, 5, 6), np.float32))
    with pytest.raises(ValueError, match=r"pair\.npy: expected pairs of latents .* got shape \(3, 4, 5, 6\)"):
        RandLoadLatent()(str(pair))
    np.save(pair, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"pair\.npy is no cached latent"):
        RandLoadLatent()(str(pair))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.npy"):
        RandLoadLatent()(str(tmp_path / "gone.npy"))


@pytest.mark.parametrize("prob", [-0.1, 1.5, float("nan")])
def test_probability_must_be_one(prob):
    with pytest.raises(ValueError, match=r"flip_prob must be in \[0, 1\]"):
        RandLoadLatentd("image", prob)
