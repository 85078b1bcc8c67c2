"""Editing in the latent against Gaussians, whose conditional is known."""

from __future__ import annotations

import pytest
import torch
from monai.networks.schedulers import DDPMScheduler
from torch import Tensor, nn

from medical_diffusion_components.diffusion import LatentDiffusionGenerator, noise_scheduler
from medical_diffusion_components.editing import LatentEditor, jump_schedule

RHO = 0.8  # correlation of neighbours along H


class PairDenoiser(nn.Module):
    """E[x0 | x_t] of latents whose two positions along H are standard normal with correlation RHO."""

    def __init__(self, alphas_cumprod: Tensor) -> None:
        super().__init__()
        self.a = alphas_cumprod

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        a, covariance = self.a[timesteps][0].double(), torch.tensor([[1, RHO], [RHO, 1]]).double()
        gain = a.sqrt() * covariance @ torch.linalg.inv(a * covariance + (1 - a) * torch.eye(2).double())
        return torch.einsum("ij,bcjwd->bciwd", gain, x.double()).float()


def generator(sampler: str = "ddpm", steps: int | None = None) -> LatentDiffusionGenerator:
    scheduler = DDPMScheduler(40, schedule="cosine", prediction_type="sample")
    made = LatentDiffusionGenerator(nn.Identity(), PairDenoiser(scheduler.alphas_cumprod), scheduler, sampler, steps)
    made.latent_scaling.bound.fill_(100.0)  # nothing is clipped: Gaussians have no bound
    return made.eval()


def test_jumps_are_those_of_the_docstring() -> None:
    assert list(jump_schedule(4, 2, 2)) == [
        (0, 1),
        (1, 2),
        (2, 0),
        (0, 1),
        (1, 2),
        (2, 3),
        (3, 4),
        (4, 2),
        (2, 3),
        (3, 4),
    ]
    assert list(jump_schedule(3, 2, 1)) == [(0, 1), (1, 2), (2, 3)]


def drawn(known: float, sampler: str, steps: int | None, resamples: int) -> Tensor:
    """750 draws of the second position given the first; the two axes of a slice are independent draws."""
    latent = torch.full((1, 1, 2, 25, 30), known)
    free = torch.zeros(2, 25, 30, dtype=torch.bool)
    free[1] = True
    result = LatentEditor(generator(sampler, steps), resamples, jump_length=4).inpaint(latent, free, seed=3)
    assert torch.equal(result[:, :, 0], latent[:, :, 0]), "what is known comes back as it was"
    return result[0, 0, 1].flatten()


def test_what_is_known_comes_back_to_the_bit_although_latents_are_scaled() -> None:
    made = generator("ddim", 5)
    made.latent_scaling.scale.fill_(0.3)
    made.latent_scaling.shift.fill_(7.0)
    latent = torch.rand(1, 1, 2, 5, 4, generator=torch.Generator().manual_seed(0))
    free = torch.zeros(2, 5, 4, dtype=torch.bool)
    free[1] = True
    result = LatentEditor(made, 1).inpaint(latent, free, seed=3)
    assert torch.equal(result[:, :, 0], latent[:, :, 0]) and not torch.equal(result, latent)


@pytest.mark.parametrize(("sampler", "steps"), [("ddpm", None), ("ddim", 20)])
def test_a_region_follows_its_conditional_distribution(sampler: str, steps: int | None) -> None:
    """N(RHO c, 1 - RHO^2) for a neighbour of c."""
    values = drawn(1.5, sampler, steps, resamples=12)
    assert abs(float(values.mean()) - RHO * 1.5) < 0.15  # the unconditional mean is 1.2 away
    assert abs(float(values.std()) - (1 - RHO**2) ** 0.5) < 0.15


def test_going_back_brings_the_region_closer_to_its_conditional() -> None:
    once, often = (abs(float(drawn(1.5, "ddpm", None, resamples).mean()) - RHO * 1.5) for resamples in (1, 12))
    assert often < 0.5 * once


class Watched(nn.Module):
    """Notes what the denoiser is shown, and calls it."""

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.shown: list[tuple[int, Tensor]] = []

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        self.shown.append((int(timesteps[0]), x.clone()))
        return self.denoiser(x, timesteps)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_the_denoiser_always_sees_the_known_part_with_the_noise_of_its_timestep(sampler: str) -> None:
    """On the first step, on each further one, and after each jump back."""
    known, made = 20.0, generator(sampler, None if sampler == "ddpm" else 20)
    made.denoiser = Watched(made.denoiser)
    free = torch.zeros(2, 25, 30, dtype=torch.bool)
    free[1] = True
    LatentEditor(made, resamples=2, jump_length=4).inpaint(torch.full((1, 1, 2, 25, 30), known), free, seed=1)
    assert len(made.denoiser.shown) > 30
    for timestep, x in made.denoiser.shown:
        a, seen = made.alphas_cumprod[timestep], x[0, 0, 0]
        assert abs(float(seen.mean() - a.sqrt() * known)) < 5 * float((1 - a) / seen.numel()) ** 0.5
        assert abs(float(seen.std() / (1 - a).sqrt()) - 1) < 0.15


@pytest.mark.parametrize(("strength", "start"), [(0.001, 0), (0.1, 3), (0.5, 19), (1.0, 39)])
def test_a_variation_begins_at_its_share_of_the_timesteps(strength: float, start: int) -> None:
    made = generator("ddim", 20)
    made.denoiser = Watched(made.denoiser)
    LatentEditor(made).vary(torch.full((1, 1, 2, 25, 30), 20.0), strength, 0)
    visited = [timestep for timestep, _ in made.denoiser.shown]
    assert visited == [start, *(t for t in made.timesteps.tolist() if t < start)]
    first = made.denoiser.shown[0][1]
    assert abs(float(first.mean() - made.alphas_cumprod[start].sqrt() * 20)) < 0.2, "with the noise of its timestep"


def some_latent(seed: int) -> Tensor:
    return torch.randn(1, 1, 2, 4, 5, generator=torch.Generator().manual_seed(seed))


def test_one_seed_gives_one_result() -> None:
    free = torch.zeros(2, 4, 5, dtype=torch.bool)
    free[0, 1:3] = True
    editor = LatentEditor(generator())
    one, again, other = (editor.inpaint(some_latent(0), free, seed) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert (one != other)[:, :, free].all() and torch.equal(one[:, :, ~free], other[:, :, ~free])
    assert torch.equal(editor.vary(some_latent(0), 0.5, 1), editor.vary(some_latent(0), 0.5, 1))


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp_2m"])
@pytest.mark.parametrize("prediction", ["sample", "flow"])
def test_strength_goes_from_the_scan_to_independence(sampler: str, prediction: str) -> None:
    scheduler = noise_scheduler(60, prediction)
    made = LatentDiffusionGenerator(nn.Identity(), nn.Identity(), scheduler, sampler, None if sampler == "ddpm" else 20)
    made.denoiser = Zero() if prediction == "sample" else Flow(scheduler.alphas_cumprod)
    made.latent_scaling.bound.fill_(100.0)
    editor = LatentEditor(made.eval())
    one, other = some_latent(0), some_latent(1)
    assert torch.equal(editor.vary(one, 0.0, 0), one)
    if sampler == "ddpm":  # its noise is a hash of where it starts: two scans never get the same
        from_scan = [float((editor.vary(one, s, 0) - one).norm() / one.norm()) for s in (0.02, 0.3, 1)]
        assert 0 < from_scan[0] < from_scan[1] < from_scan[2], from_scan
        return
    apart = [
        float((editor.vary(one, s, 0) - editor.vary(other, s, 0)).norm() / (one - other).norm()) for s in (0.1, 0.5, 1)
    ]
    assert apart[0] > apart[1] > apart[2] and apart[2] < 0.02, apart


class Zero(nn.Module):
    """E[x0 | x_t] for x0 of variance 1 and alpha-bar of 60 steps of the cosine schedule: sqrt(a) x_t."""

    def __init__(self) -> None:
        super().__init__()
        self.a = noise_scheduler(60, "sample").alphas_cumprod

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        return self.a[timesteps].sqrt().view(-1, 1, 1, 1, 1) * x


class Flow(nn.Module):
    """E[e - x0 | x_t] for x0 of variance 1, with x_t = (1 - t) x0 + t e."""

    def __init__(self, alphas_cumprod: Tensor) -> None:
        super().__init__()
        self.a = alphas_cumprod

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        signal, noise = (
            self.a[timesteps].sqrt().view(-1, 1, 1, 1, 1),
            (1 - self.a[timesteps]).sqrt().view(-1, 1, 1, 1, 1),
        )
        return (noise - signal) * x * (signal + noise)


def test_the_way_between_two_begins_and_ends_with_their_variations() -> None:
    editor = LatentEditor(generator("ddim", 20))
    one, other = some_latent(0), some_latent(1)
    torch.testing.assert_close(editor.between(one, other, 0.0, 0.5, 3), editor.vary(one, 0.5, 3))
    torch.testing.assert_close(editor.between(one, other, 1.0, 0.5, 3), editor.vary(other, 0.5, 3))
    middle, mixed = editor.between(one, other, 0.5, 0.5, 3), editor.between(other, one, 0.5, 0.5, 3)
    torch.testing.assert_close(middle, mixed)
    assert (
        0
        < float((middle - editor.vary(one, 0.5, 3)).norm())
        < float((editor.vary(one, 0.5, 3) - editor.vary(other, 0.5, 3)).norm())
    )


def test_after_an_edit_the_generator_samples_as_before() -> None:
    made, noise = generator("ddim", 20), some_latent(4)
    before = made.sample_latent(noise)
    LatentEditor(made).vary(some_latent(0), 0.3, 0)
    assert torch.equal(made.sample_latent(noise), before)


def test_what_makes_no_sense_is_refused() -> None:
    free = torch.ones(2, 4, 5, dtype=torch.bool)
    with pytest.raises(ValueError, match='inpainting goes with the samplers "ddpm" and "ddim"'):
        LatentEditor(generator("dpmpp_2m", 20)).inpaint(some_latent(0), free, 0)
    with pytest.raises(ValueError, match="at least 1, got 0 and 5"):
        LatentEditor(generator(), 0)
    with pytest.raises(ValueError, match=r"expected a strength in \[0, 1\], got 1.5"):
        LatentEditor(generator()).vary(some_latent(0), 1.5, 0)
    with pytest.raises(ValueError, match=r"expected a weight in \[0, 1\], got -1"):
        LatentEditor(generator()).between(some_latent(0), some_latent(1), -1, 0.5, 0)
