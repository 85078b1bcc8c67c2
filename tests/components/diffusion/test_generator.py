from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from monai.networks.schedulers import DDIMScheduler, DDPMScheduler
from torch import Tensor, nn

from medical_diffusion_components.chance import counter_normal, seeds_from_noise
from medical_diffusion_components.diffusion.generator import LatentDiffusionGenerator
from medical_diffusion_components.networks.codebook import EMACodebook
from medical_diffusion_components.networks.denoiser import Denoiser
from medical_diffusion_components.networks.vqgan import VQGAN
from medical_diffusion_components.weights import WeightsError, load_weights, save_weights

T = 20
SHORT = 8  # steps with the real denoiser


class Guess(nn.Module):
    """Stands for the denoiser: noise that depends on every neighbour along H and on the timestep."""

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        t = timesteps.to(x.dtype).view(-1, 1, 1, 1, 1)
        return 0.9 * x + 0.1 * x.roll(1, 2) * torch.cos(t)


class Oracle(nn.Module):
    """Predicts the very noise that leads to ``x0``; the latent stays within [-1, 1], so nothing is clipped."""

    def __init__(self, x0: Tensor, alphas_cumprod: Tensor, prediction_type: str = "epsilon") -> None:
        super().__init__()
        self.x0, self.alphas_cumprod, self.prediction_type = x0, alphas_cumprod, prediction_type

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        a = self.alphas_cumprod[timesteps].view(-1, 1, 1, 1, 1)
        noise = (x - a.sqrt() * self.x0) / (1 - a).sqrt()
        velocity = a.sqrt() * noise - (1 - a).sqrt() * self.x0
        return {"epsilon": noise, "sample": self.x0, "v_prediction": velocity}[self.prediction_type]


def schedule(steps: int = T, name: str = "cosine") -> DDPMScheduler:
    return DDPMScheduler(steps, schedule=name)


def first_stage() -> VQGAN:
    torch.manual_seed(0)
    network = VQGAN(EMACodebook(30, 3), base_channels=4, compression=(2, 2, 1), norm_groups=4)
    network.train()(torch.randn(1, 1, 8, 12, 4))
    return network.eval()


def generator(denoiser: nn.Module | None = None, scheduler=None, **settings) -> LatentDiffusionGenerator:
    if denoiser is None:  # a real one, but small
        torch.manual_seed(2)
        knobs = {"channel_multipliers": (1, 2), "num_heads": 2, "head_channels": 4, "norm_groups": 2}
        denoiser = Denoiser(3, base_channels=4, **knobs)
        scheduler = scheduler or schedule(SHORT)
    return LatentDiffusionGenerator(first_stage(), denoiser, scheduler or schedule(), **settings).eval()


def starting_noise(batch: int = 2) -> Tensor:
    return torch.stack([torch.randn(3, 2, 4, 3, generator=torch.Generator().manual_seed(n)) for n in range(batch)])


# --- samplers ---


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("name, options", [("cosine", {}), ("linear_beta", {"beta_start": 0.02, "beta_end": 0.4})])
def test_ancestral_sampling_equals_the_steps_of_monai(monkeypatch, name, options, prediction_type):
    scheduler, x = DDPMScheduler(T, name, prediction_type=prediction_type, **options), starting_noise()
    seeds, drawn = seeds_from_noise(x), iter(range(T))
    latent = generator(Guess(), scheduler).sample_latent(x)

    # MONAI draws its noise with torch.randn, here made to return that of the same step
    monkeypatch.setattr(torch, "randn", lambda *a, **k: counter_normal(seeds, next(drawn), x))
    clipped = 0
    for t in range(T - 1, -1, -1):
        x, x0 = scheduler.step(Guess()(x, torch.full((2,), t)), t, x)
        clipped += int((x0.abs() == 1).sum())
    assert next(drawn) == T - 1  # one draw per step but the last
    assert clipped > 0
    torch.testing.assert_close(latent, x, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("steps", [1, T])  # elsewhere MONAI's stride T // steps leaves its own timesteps
def test_ddim_equals_the_steps_of_monai_where_nothing_is_clipped(steps, prediction_type):
    x, x0 = starting_noise(), torch.rand(2, 3, 2, 4, 3) * 1.8 - 0.9
    scheduler = DDIMScheduler(T, schedule="cosine", clip_sample=False, prediction_type=prediction_type)
    scheduler.set_timesteps(steps)
    oracle = Oracle(x0 + 0.05, scheduler.alphas_cumprod, prediction_type)
    wobbly = Oracle(x0, scheduler.alphas_cumprod, prediction_type)

    class Denoise(nn.Module):  # not quite consistent from step to step, so the path matters
        def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
            return (oracle if int(timesteps[0]) % 3 == 0 else wobbly)(x, timesteps)

    latent = generator(Denoise(), scheduler, sampler="ddim", num_inference_steps=steps).sample_latent(x)
    for t in scheduler.timesteps.tolist():
        x, _ = scheduler.step(Denoise()(x, torch.full((2,), t)), t, x)
    torch.testing.assert_close(latent, x, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 7, T])
def test_ddim_equals_its_formula_for_any_number_of_steps(steps):
    noise = starting_noise()
    latent = generator(Guess(), sampler="ddim", num_inference_steps=steps).sample_latent(noise)

    x, a = noise.double().numpy(), np.cumprod(1 - schedule().betas.double().numpy())
    times = [round(T - 1 - i * (T - 1) / max(steps - 1, 1)) for i in range(steps)]
    for t, s in zip(times, [*times[1:], None]):
        guess = 0.9 * x + 0.1 * np.roll(x, 1, axis=2) * np.cos(t)
        x0 = np.clip((x - np.sqrt(1 - a[t]) * guess) / np.sqrt(a[t]), -1, 1)
        guess = (x - np.sqrt(a[t]) * x0) / np.sqrt(1 - a[t])
        x = x0 if s is None else np.sqrt(a[s]) * x0 + np.sqrt(1 - a[s]) * guess
    assert len(set(times)) == steps and times[0] == T - 1 and (steps == 1 or times[-1] == 0)
    torch.testing.assert_close(latent.double(), torch.from_numpy(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m"])
def test_given_timesteps_take_the_place_of_the_generators_own(sampler):
    few, many = (generator(Guess(), sampler=sampler, num_inference_steps=steps) for steps in (7, 11))
    assert torch.equal(
        many.sample_latent(starting_noise(), timesteps=few.timesteps), few.sample_latent(starting_noise())
    )


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp_2m"])
def test_a_perfect_denoiser_leads_every_sampler_to_the_latent(sampler, prediction_type):
    x0 = torch.rand(2, 3, 2, 4, 3) * 1.8 - 0.9
    settings = {} if sampler == "ddpm" else {"num_inference_steps": 6}
    scheduler = DDPMScheduler(T, "cosine", prediction_type=prediction_type)
    perfect = generator(Oracle(x0, scheduler.alphas_cumprod, prediction_type), scheduler, sampler=sampler, **settings)
    torch.testing.assert_close(perfect.sample_latent(starting_noise()), x0, atol=1e-4, rtol=0)


def test_ancestral_samples_have_the_variance_of_a_linear_recursion():
    # with a denoiser k_t x every step is x_s = c_t x_t + sigma_t z, so V_s = c_t^2 V_t + sigma_t^2
    a = schedule().alphas_cumprod.double()
    slopes = (1 - a).sqrt() / (0.04 * a + 1 - a)  # best guess of the noise for data N(0, 0.04)

    class Linear(nn.Module):
        def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
            return x * slopes[timesteps].view(-1, 1, 1, 1, 1).float()

    variance = 1.0
    for t in range(T - 1, 0, -1):
        of_x0 = (1 - (1 - a[t]).sqrt() * slopes[t]) / a[t].sqrt()
        beta, left = 1 - a[t] / a[t - 1], 1 - a[t - 1]
        c = a[t - 1].sqrt() * beta / (1 - a[t]) * of_x0 + (1 - beta).sqrt() * left / (1 - a[t])  # Ho et al., equation 7
        variance = c**2 * variance + beta * left / (1 - a[t])
    variance = variance * ((1 - (1 - a[0]).sqrt() * slopes[0]) / a[0].sqrt()) ** 2
    latent = generator(Linear()).sample_latent(torch.randn(4, 3, 20, 20, 10))
    assert abs(latent.var() / variance - 1) < 0.03  # 48,000 numbers: 4.6 standard errors


def test_volume_is_the_decoded_latent():
    network = generator(sampler="ddim", num_inference_steps=3)
    latent = network.sample_latent(starting_noise())
    volume = network(starting_noise())
    assert volume.shape == (2, 1, 4, 8, 3) and not volume.isnan().any()
    torch.testing.assert_close(volume, network.first_stage.decode_stage_2_outputs(latent))


# --- one volume per noise ---


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp_2m"])
def test_volume_depends_neither_on_the_batch_size_nor_on_its_neighbours(sampler):
    network, noise = generator(sampler=sampler), starting_noise(3)
    together = network.sample_latent(noise)
    alone = torch.cat([network.sample_latent(noise[n : n + 1]) for n in range(3)])
    turned = network.sample_latent(noise[[2, 0, 1]])[[1, 2, 0]]
    torch.testing.assert_close(alone, together, atol=2e-4, rtol=0)  # rounding, through every step
    torch.testing.assert_close(turned, together, atol=2e-4, rtol=0)
    torch.testing.assert_close(network(noise)[1:2], network(noise[1:2]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp_2m"])
def test_same_noise_gives_the_same_volume_to_the_bit_and_other_noise_another(sampler):
    network, noise = generator(sampler=sampler), starting_noise(2)
    first = network(noise)
    torch.manual_seed(99)  # no global random state has a say
    assert torch.equal(first, network(noise))
    assert (first[0] - first[1]).abs().mean() > 0.01


def test_sampling_builds_no_graph_through_the_steps():
    latent = generator(sampler="ddim", num_inference_steps=2).sample_latent(starting_noise().requires_grad_())
    assert not latent.requires_grad


def test_progress_is_reported_once_per_step():
    network, ticks = generator(Guess(), sampler="ddim", num_inference_steps=7), []
    network.progress = lambda: ticks.append(1)
    network(starting_noise())
    assert len(ticks) == 7


@pytest.mark.parametrize(
    "prediction_type, settings",
    [
        ("epsilon", {}),
        ("v_prediction", {"sampler": "ddim", "num_inference_steps": 4}),
        ("sample", {"sampler": "dpmpp_2m", "num_inference_steps": 5}),
    ],
)
@pytest.mark.slow
def test_scripted_generator_equals_the_eager_one(prediction_type, settings):
    scheduler = DDPMScheduler(SHORT, "cosine", prediction_type=prediction_type)
    network, buffer = generator(scheduler=scheduler, **settings), io.BytesIO()
    torch.jit.save(torch.jit.script(network), buffer)
    buffer.seek(0)
    scripted = torch.jit.load(buffer)
    torch.testing.assert_close(scripted(starting_noise()), network(starting_noise()), atol=1e-5, rtol=0)
    latents = [one.sample_latent(starting_noise(), timesteps=torch.tensor([6, 3])) for one in (scripted, network)]
    torch.testing.assert_close(*latents, atol=1e-4, rtol=0)


# --- what is refused ---


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"sampler": "euler"}, 'sampler must be "ddpm", "ddim" or "dpmpp_2m", got .euler.'),
        ({"sampler": "ddpm", "num_inference_steps": 7}, f"takes all {T} steps, got 7; for fewer steps use dpmpp_2m"),
        ({"sampler": "ddim", "num_inference_steps": 0}, rf"in \[1, {T}\], got 0"),
        ({"sampler": "ddim", "num_inference_steps": T + 1}, rf"in \[1, {T}\], got {T + 1}"),
    ],
)
def test_samplers_and_steps_that_do_not_exist_are_errors(settings, message):
    with pytest.raises(ValueError, match=message):
        generator(Guess(), **settings)


def test_an_unknown_prediction_type_is_an_error():
    scheduler = schedule()
    scheduler.prediction_type = "score"
    with pytest.raises(ValueError, match=r"prediction_type must be .* got 'score'"):
        generator(Guess(), scheduler)


def test_weights_of_another_length_of_schedule_are_refused(tmp_path):
    save_weights(generator(), tmp_path / "model.pt", {})
    with pytest.raises(WeightsError, match=rf"alphas_cumprod: expected \({T},\), got \({SHORT},\)"):
        load_weights(generator(scheduler=schedule(T)), tmp_path / "model.pt")


def test_weights_bring_the_schedule_that_they_were_trained_with(tmp_path):
    trained, other = generator(), generator(scheduler=schedule(SHORT, "linear_beta"))
    save_weights(trained, tmp_path / "model.pt", {})
    assert not torch.equal(other.sample_latent(starting_noise()), trained.sample_latent(starting_noise()))
    load_weights(other, tmp_path / "model.pt")
    assert torch.equal(other.sample_latent(starting_noise()), trained.sample_latent(starting_noise()))


def test_number_of_steps_is_no_part_of_the_weights(tmp_path):
    save_weights(generator(), tmp_path / "model.pt", {})
    fewer = generator(sampler="ddim", num_inference_steps=3)
    load_weights(fewer, tmp_path / "model.pt")
    assert len(fewer.timesteps) == 3
