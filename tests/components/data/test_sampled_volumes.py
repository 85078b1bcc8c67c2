from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import DataLoader
from monai.transforms import Compose

from medical_diffusion_components.chance import derive_seed
from medical_diffusion_components.data.loading import ResumableSampler, SeededDataset
from medical_diffusion_components.data.sampled_volumes import SampledVolumes, VolumeSampler, describe_sampling
from medical_diffusion_components.weights import WeightsError

ADNI = Path(__file__).parents[3] / "bundles" / "adni_ldm"


@pytest.fixture(scope="module")
def sampler(small_generator: dict) -> VolumeSampler:
    return VolumeSampler(ADNI, settings=small_generator)


def test_a_volume_has_the_intensities_and_the_place_that_inference_gives_it(sampler: VolumeSampler) -> None:
    volume = sampler(3)
    with torch.no_grad():
        raw = sampler.network(torch.randn(8, 8, 12, 6, generator=torch.Generator().manual_seed(3))[None])[0]
    torch.testing.assert_close(volume.as_tensor(), (raw.clamp(-1, 1) + 1) * 127.5, atol=1e-3, rtol=0)
    np.testing.assert_allclose(
        volume.affine.numpy(), np.array([[2, 0, 0, -15], [0, 3, 0, -34.5], [0, 0, 4, -22], [0, 0, 0, 1]])
    )
    assert sampler.spacing("RAS") == [2, 3, 4] and sampler.spacing("PSR") == [3, 4, 2]


def test_volumes_follow_from_seed_epoch_and_number(sampler: VolumeSampler) -> None:
    data = SeededDataset(SampledVolumes(sampler, 3, seed=5), Compose([]), cache_rate=0.0)
    order, found = ResumableSampler(data, seed=1), {}
    for epoch in (1, 2):
        order.set_epoch(epoch)
        for batch in DataLoader(data, sampler=order, batch_size=1):
            found[batch["case_id"][0]] = batch["image"][0]
    expected = {
        f"sampled_{derive_seed(5, epoch, n):010d}": derive_seed(5, epoch, n) for epoch in (1, 2) for n in range(3)
    }
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name].as_tensor(), sampler(seed).as_tensor()) for name, seed in expected.items())


def test_workers_draw_what_the_main_process_draws(sampler: VolumeSampler) -> None:
    volumes = SampledVolumes(sampler, 2, seed=5)
    data = SeededDataset(volumes, Compose([]), cache_rate=0.0)
    by_worker = list(DataLoader(data, sampler=ResumableSampler(data, shuffle=False), batch_size=1, num_workers=1))
    for number, batch in enumerate(by_worker):
        torch.testing.assert_close(
            batch["image"][0].as_tensor(), volumes[number]["image"].as_tensor(), atol=1e-3, rtol=0
        )


def test_axes_are_turned_as_asked_for(sampler: VolumeSampler) -> None:
    as_it_is, turned = (SampledVolumes(sampler, 1, axcodes=axcodes)[0]["image"] for axcodes in ("RAS", "PSR"))
    assert torch.equal(turned.as_tensor(), as_it_is.as_tensor().permute(0, 2, 3, 1).flip(1))


def test_the_note_tells_what_the_generator_was_trained_on(sampler: VolumeSampler, small_generator: dict) -> None:
    note = describe_sampling(sampler)
    assert note["data"] == "sampled while training from adni_ldm, itself trained on: embedded template cohort"
    assert note["notice"] == "not patients" and (note["sampler"], note["steps"]) == ("ddim", 2)
    assert small_generator["models_dir"] not in json.dumps(note)
    other = VolumeSampler(ADNI, settings={**small_generator, "num_inference_steps": 3})
    assert describe_sampling(other)["data_sha256"] != note["data_sha256"]


def test_the_generator_of_another_folder_is_named(tmp_path: Path, small_generator: dict) -> None:
    with pytest.raises(FileNotFoundError, match="no configuration inference.json in .*generator must be the folder"):
        VolumeSampler(tmp_path)
    with pytest.raises(ValueError, match="num_code is no setting of the generator .*; did you mean num_codes"):
        VolumeSampler(ADNI, settings={"num_code": 3})
    with pytest.raises(WeightsError, match=f"expected weights at {tmp_path}/model.pt"):
        VolumeSampler(ADNI, settings={**small_generator, "models_dir": str(tmp_path)})


def test_no_volumes_are_refused(sampler: VolumeSampler) -> None:
    with pytest.raises(ValueError, match="at least 1 volume to sample, got 0"):
        SampledVolumes(sampler, 0)
    with pytest.raises(IndexError):
        SampledVolumes(sampler, 2)[2]
