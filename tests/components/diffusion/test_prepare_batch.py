from __future__ import annotations

import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.engines import DiffusionPrepareBatch, VPredictionPrepareBatch
from monai.networks.schedulers import DDPMScheduler
from scipy import stats

from medical_diffusion_components.data.latents import held_out_draws
from medical_diffusion_components.diffusion.latent_scaling import LatentScaling
from medical_diffusion_components.diffusion.prepare_batch import HeldOutPrepareBatch, TrainingPrepareBatch

T, DRAWS = 300, 4


def entries(cases: int = 25) -> list[dict]:
    plain = [{"image": torch.full((2, 3, 4, 5), float(n)), "case_id": f"case_{n}"} for n in range(cases)]
    return held_out_draws(plain, DRAWS)


def schedule(prediction_type: str = "epsilon") -> DDPMScheduler:
    return DDPMScheduler(T, schedule="cosine", prediction_type=prediction_type)


def prepared(batch_size: int, data: list[dict] | None = None, prediction_type: str = "epsilon") -> list[tuple]:
    prepare = HeldOutPrepareBatch(schedule(prediction_type))
    loader = DataLoader(Dataset(data or entries()), batch_size=batch_size, num_workers=0)
    return [prepare(batch, "cpu") for batch in loader]


def noise_and_timesteps(batches: list[tuple]) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(torch.cat([inputs[key] for *_, inputs in batches]) for key in ("noise", "timesteps"))


def test_noise_and_timesteps_are_the_same_in_every_call_and_whatever_the_batch_size():
    noise, timesteps = noise_and_timesteps(prepared(6))
    torch.manual_seed(12)
    again, again_timesteps = noise_and_timesteps(prepared(100, entries()[::-1]))
    assert torch.equal(noise, again.flip(0)) and torch.equal(timesteps, again_timesteps.flip(0))


def test_draws_take_the_parts_of_the_schedule_in_turn():
    timesteps = noise_and_timesteps(prepared(100))[1].view(-1, DRAWS)  # (case, draw)
    assert (timesteps // (T // DRAWS) == torch.arange(DRAWS)).all()
    within = timesteps % (T // DRAWS)
    assert stats.kstest(within.flatten() / (T // DRAWS), stats.uniform.cdf).pvalue > 1e-3
    assert len(within.flatten().unique()) > 30


def test_noise_is_standard_normal_and_another_for_every_case_and_draw():
    noise = noise_and_timesteps(prepared(100))[0]
    assert stats.kstest(noise.flatten(), stats.norm.cdf).pvalue > 1e-3
    assert len({tuple(row.flatten().tolist()) for row in noise}) == 25 * DRAWS


def test_target_is_the_noise_and_the_latents_pass_through():
    [(images, target, args, inputs)] = prepared(8, entries(2))
    assert torch.equal(target, inputs["noise"]) and args == () and set(inputs) == {"noise", "timesteps"}
    assert torch.equal(images, torch.stack([entry["image"] for entry in entries(2)]))
    assert inputs["timesteps"].dtype == torch.int64 and target.dtype == images.dtype


def test_a_condition_is_passed_on_as_monai_does():
    batch = {"image": torch.zeros(1, 2, 3, 4, 5), "case_id": ["a"], "draw": [0], "draws": [1], "age": torch.ones(1, 1)}
    for kind in (TrainingPrepareBatch, HeldOutPrepareBatch):
        *_, inputs = kind(schedule(), condition_name="age")(batch, "cpu")
        assert torch.equal(inputs["condition"], batch["age"])


def test_target_of_held_out_latents_is_what_the_network_predicts():
    [(latents, target, _, _)] = prepared(8, entries(2), "sample")
    assert torch.equal(target, latents)
    [(latents, target, _, inputs)] = prepared(8, entries(2), "v_prediction")
    a = schedule().alphas_cumprod[inputs["timesteps"]].view(-1, 1, 1, 1, 1)
    torch.testing.assert_close(target, a.sqrt() * inputs["noise"] - (1 - a).sqrt() * latents)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_training_batch_is_that_of_monai_for_the_prediction_type(prediction_type):
    batch, scheduler = {"image": torch.randn(3, 2, 3, 4, 5)}, schedule(prediction_type)
    monai = VPredictionPrepareBatch(scheduler, T) if prediction_type == "v_prediction" else DiffusionPrepareBatch(T)
    latents, target, _, inputs = TrainingPrepareBatch(scheduler)(batch, "cpu")
    expected = monai.get_target(latents, inputs["noise"], inputs["timesteps"])
    assert torch.equal(target, latents if prediction_type == "sample" else expected)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("kind", [TrainingPrepareBatch, HeldOutPrepareBatch])
def test_noise_is_added_to_scaled_latents_and_they_are_the_target(kind: type, prediction_type: str) -> None:
    scaling, data = LatentScaling((2, 3, 4, 5)), entries(3)
    scaling.fit("per_position", [torch.randn(4, 2, 3, 4, 5)])
    batch = next(iter(DataLoader(Dataset(data), batch_size=12, num_workers=0)))
    scheduler = schedule(prediction_type)
    latents, target, _, inputs = kind(scheduler, latent_scaling=scaling)(batch, "cpu")
    assert torch.equal(latents, scaling(batch["image"]))
    assert torch.equal(
        target, kind(scheduler).get_target(scaling(batch["image"]), inputs["noise"], inputs["timesteps"])
    )


def test_stratified_timesteps_fall_into_different_parts_of_the_schedule() -> None:
    batch = {"image": torch.zeros(6, 2, 3, 4, 5)}
    prepare, drawn = TrainingPrepareBatch(schedule(), stratified=True), []
    for seed in range(300):
        torch.manual_seed(seed)
        *_, inputs = prepare(batch, "cpu")
        assert sorted((inputs["timesteps"] // (T // 6)).tolist()) == list(range(6))
        drawn.append(inputs["timesteps"])
    for row in torch.stack(drawn).T.double():  # each by itself is anywhere in the schedule
        assert stats.kstest((row + 0.5) / T, stats.uniform.cdf).pvalue > 1e-3
    torch.manual_seed(0)
    *_, inputs = TrainingPrepareBatch(schedule())(batch, "cpu")
    assert len(set((inputs["timesteps"] // (T // 6)).tolist())) < 6, "by default each is drawn by itself"
