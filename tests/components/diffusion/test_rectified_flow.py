from __future__ import annotations

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from medical_diffusion_components.diffusion.generator import LatentDiffusionGenerator
from medical_diffusion_components.diffusion.prepare_batch import HeldOutPrepareBatch, TrainingPrepareBatch
from medical_diffusion_components.diffusion.rectified_flow import FlowScheduler, noise_scheduler
from medical_diffusion_components.diffusion.timesteps import evenly_in_time

T = 300
MEAN, STD = 0.4, 0.3  # of the latents that are to be made


class Velocity(nn.Module):
    """The best guess of e - x for latents N(MEAN, STD^2): both are linear in what is seen."""

    def __init__(self, scheduler: FlowScheduler) -> None:
        super().__init__()
        self.scheduler = scheduler

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        t = self.scheduler.time(timesteps).double().view(-1, 1, 1, 1, 1)
        off = (x - (1 - t) * MEAN) / ((1 - t) ** 2 * STD**2 + t**2)
        return t * off - (MEAN + (1 - t) * STD**2 * off)


class Bent(nn.Module):
    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        return torch.sin(2 * x) + 0.01 * timesteps.to(x.dtype).view(-1, 1, 1, 1, 1)


def generator(denoiser: nn.Module, scheduler: FlowScheduler, sampler: str, steps: int) -> LatentDiffusionGenerator:
    made = LatentDiffusionGenerator(nn.Identity(), denoiser, scheduler, sampler, steps)
    made.latent_scaling.bound.fill_(1e6)
    return made


def noise() -> Tensor:
    return torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0))


def error(sampler: str, steps: int, shift: float = 1.0) -> float:
    """Root mean square distance to the flow's exact end, MEAN + STD e."""
    scheduler = FlowScheduler(T, shift)
    made = generator(Velocity(scheduler), scheduler, sampler, steps).sample_latent(noise())
    return float((made - (MEAN + STD * noise())).square().mean().sqrt())


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m"])
def test_flow_of_a_gaussian_ends_where_it_must(sampler: str, shift: float) -> None:
    assert error(sampler, T, shift) < 0.006  # 2 percent of the standard deviation


def test_the_second_order_sampler_needs_fewer_steps() -> None:
    euler, second = ([error(sampler, steps) for steps in (10, 20)] for sampler in ("ddim", "dpmpp_2m"))
    assert second[0] < euler[0] / 2 and second[1] < euler[1] / 2
    assert 1.6 < euler[0] / euler[1] < 2.6, "of first order"


@pytest.mark.parametrize("shift", [1.0, 2.5])
def test_ddim_is_the_method_of_euler_on_the_flow(shift: float) -> None:
    scheduler, steps = FlowScheduler(T, shift), 12
    made = generator(Bent(), scheduler, "ddim", steps).sample_latent(noise())
    indices = evenly_in_time(scheduler.alphas_cumprod, steps)
    times = [*scheduler.time(indices).double().tolist(), 0.0]
    # from where the generator starts: its noise stands for the first time's latent at constant variance
    x = noise().double() * ((1 - times[0]) ** 2 + times[0] ** 2) ** 0.5
    for index, t, s in zip(indices, times, times[1:]):
        x = x + (s - t) * Bent()(x, index.expand(2))
    torch.testing.assert_close(made.double(), x, atol=2e-4, rtol=1e-4)


def test_noise_target_and_times_are_those_of_the_papers() -> None:
    scheduler, timesteps = FlowScheduler(T, shift=3.0), torch.tensor([0.0, 149.5, 299.0])
    place = (timesteps.double() + 1) / (T + 1)
    t = 3 * place / (1 + 2 * place)
    torch.testing.assert_close(scheduler.time(timesteps).double(), t, rtol=1e-6, atol=0)
    latents, e = torch.randn(3, 2, 3, 4, 5), torch.randn(3, 2, 3, 4, 5)
    w = t.float().view(3, 1, 1, 1, 1)
    torch.testing.assert_close(scheduler.add_noise(latents, e, timesteps), (1 - w) * latents + w * e)
    torch.testing.assert_close(scheduler.get_velocity(latents, e, timesteps), e - latents)
    a = scheduler.alphas_cumprod[[0, 299]].double()
    torch.testing.assert_close((1 - a).sqrt() / (a.sqrt() + (1 - a).sqrt()), t[[0, 2]], rtol=5e-3, atol=0)


@pytest.mark.parametrize("stratified", [False, True])
def test_training_times_are_float32_and_their_logit_is_normal(stratified: bool) -> None:
    torch.manual_seed(0)
    prepare = TrainingPrepareBatch(FlowScheduler(T, mean=-0.5, std=1.5), stratified=stratified)
    images, target, _, inputs = prepare({"image": torch.randn(500, 1, 1, 1, 1)}, "cpu")
    assert torch.equal(target, inputs["noise"] - images) and inputs["timesteps"].dtype == torch.float32
    place = ((inputs["timesteps"].double() + 1) / (T + 1)).clamp(1e-6, 1 - 1e-6)
    fit = stats.kstest(torch.logit(place), stats.norm(-0.5, 1.5).cdf)
    assert fit.statistic < 2 / 500 if stratified else fit.pvalue > 1e-3
    assert (inputs["timesteps"] != inputs["timesteps"].round()).all()


def test_held_out_latents_are_judged_at_whole_timesteps() -> None:
    batch = {"image": torch.randn(2, 1, 2, 3, 4), "case_id": ["a", "b"], "draw": [0, 1], "draws": [2, 2]}
    images, target, _, inputs = HeldOutPrepareBatch(FlowScheduler(T))(batch, "cpu")
    assert inputs["timesteps"].dtype == torch.int64 and torch.equal(target, inputs["noise"] - images)


def test_the_prediction_type_chooses_the_schedule() -> None:
    assert noise_scheduler(T, "flow", 3.0).shift == 3.0
    assert noise_scheduler(T, "sample").prediction_type == "sample"


@pytest.mark.parametrize("settings", [{"shift": 0.0}, {"std": -1.0}])
def test_what_is_not_positive_is_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        FlowScheduler(T, **settings)
