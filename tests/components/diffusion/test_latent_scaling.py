from __future__ import annotations

import io
from itertools import product

import numpy as np
import pytest
import torch
from monai.networks.utils import copy_model_state
from torch import Tensor, nn

from medical_diffusion_components.diffusion.generator import LatentDiffusionGenerator
from medical_diffusion_components.diffusion.latent_scaling import LatentScaling
from medical_diffusion_components.diffusion.rectified_flow import noise_scheduler
from medical_diffusion_components.networks.codebook import EMACodebook
from medical_diffusion_components.networks.vqgan import VQGAN
from medical_diffusion_components.weights import WeightsError, load_weights, save_weights

SHAPE, T = (3, 2, 4, 5), 20
SCALINGS = ("min_max", "per_channel", "per_position")
PREDICTIONS = ("epsilon", "sample", "v_prediction", "flow")
SAMPLERS = ("ddpm", "ddim", "dpmpp_2m")


def latents(cases: int = 6) -> list[Tensor]:
    """Pairs (2, C, h, w, d): a mean of each position, a width of each channel."""
    rng = np.random.default_rng(4)
    mean, width = rng.uniform(-0.5, 0.5, SHAPE), np.array([0.02, 0.1, 0.2]).reshape(3, 1, 1, 1)
    drawn = mean + width * rng.uniform(-1.7, 1.7, (cases, 2, *SHAPE))
    return list(torch.from_numpy(drawn).float())


def fitted(kind: str) -> LatentScaling:
    scaling = LatentScaling(SHAPE)
    scaling.fit(kind, latents())
    return scaling


class Oracle(nn.Module):
    """Predicts what leads to the scaled latent ``z``."""

    def __init__(self, z: Tensor, alphas_cumprod: Tensor, prediction: str) -> None:
        super().__init__()
        self.z, self.alphas_cumprod, self.prediction = z, alphas_cumprod, prediction

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        a = self.alphas_cumprod[timesteps].view(-1, 1, 1, 1, 1)
        if self.prediction == "flow":
            t = (1 - a).sqrt() / (a.sqrt() + (1 - a).sqrt())
            return (x - (1 - t) * self.z) / t - self.z
        noise = (x - a.sqrt() * self.z) / (1 - a).sqrt()
        if self.prediction == "sample":
            return self.z
        if self.prediction == "v_prediction":
            return a.sqrt() * noise - (1 - a).sqrt() * self.z
        return noise


class Shrink(nn.Module):
    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor | None = None) -> Tensor:
        return 0.7 * x + 0.1 * torch.sin(timesteps.to(x.dtype)).view(-1, 1, 1, 1, 1)


def generator(denoiser: nn.Module, prediction: str = "epsilon", shape=SHAPE, **settings) -> LatentDiffusionGenerator:
    torch.manual_seed(0)
    first_stage = VQGAN(EMACodebook(16, 3), base_channels=4, compression=(2, 2, 1), norm_groups=4)
    first_stage.train()(torch.randn(1, 1, 8, 12, 4))
    scheduler = noise_scheduler(T, prediction)
    return LatentDiffusionGenerator(first_stage, denoiser, scheduler, latent_shape=shape, **settings).eval()


def noise(batch: int = 2, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(3))


# --- fitting ---


def test_scaling_per_position_is_that_of_numpy() -> None:
    rows = torch.cat(latents()).double().numpy()
    rest = rows - rows.mean(0)
    scale = np.sqrt((rest**2).mean((0, 2, 3, 4))).reshape(3, 1, 1, 1)
    scaling = fitted("per_position")
    np.testing.assert_allclose(scaling.shift, rows.mean(0), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(scaling.scale, scale, rtol=1e-5)
    assert float(scaling.bound) == pytest.approx(np.abs(rest / scale).max(), rel=1e-5)


def test_scaling_per_channel_is_that_of_numpy() -> None:
    rows = torch.cat(latents()).double().numpy()
    mean, deviation = rows.mean((0, 2, 3, 4)).reshape(3, 1, 1, 1), rows.std((0, 2, 3, 4)).reshape(3, 1, 1, 1)
    scaling = fitted("per_channel")
    np.testing.assert_allclose(scaling.shift, np.broadcast_to(mean, SHAPE), rtol=1e-5)
    np.testing.assert_allclose(scaling.scale, deviation, rtol=1e-5)
    assert float(scaling.bound) == pytest.approx(np.abs((rows - mean) / deviation).max(), rel=1e-5)


@pytest.mark.parametrize("kind", SCALINGS)
def test_scaled_training_latents_reach_the_bound_and_come_back(kind: str) -> None:
    scaling, rows = fitted(kind), torch.cat(latents())
    scaled = scaling(rows)
    if kind == "min_max":
        assert torch.equal(scaled, rows) and scaling.bound == 1
    else:
        assert scaled.abs().max() == pytest.approx(float(scaling.bound), rel=1e-5)
        torch.testing.assert_close(scaled.square().mean((0, 2, 3, 4)), torch.ones(3))
    torch.testing.assert_close(scaling.inverse(scaled), rows)


def test_fitting_again_replaces_what_was_learned() -> None:
    scaling = fitted("per_position")
    scaling.fit("min_max", iter(()))
    assert torch.equal(scaling(noise()), noise()) and scaling.bound == 1


def test_a_scaling_without_a_size_takes_that_of_the_latents() -> None:
    scaling = LatentScaling((1, 1, 1, 1))
    scaling.fit("per_position", latents())
    assert torch.equal(scaling(noise()), fitted("per_position")(noise()))


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        ("standard", latents(), '"min_max", "per_channel" or "per_position", got .standard.'),
        ("per_channel", [], "expected training latents to make their scaling from, got none"),
        (
            "per_channel",
            [torch.rand(2, 3, 2, 2, 2), torch.rand(2, 3, 2, 2, 1)],
            r"of one shape, got \[3, 2, 2, 2\] and",
        ),
        ("per_position", [torch.ones(2, *SHAPE)], r"channels \[0, 1, 2\] do not vary over the 2 training latents"),
    ],
)
def test_what_nothing_can_be_learned_from_is_refused(kind: str, given: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LatentScaling(SHAPE).fit(kind, given)


def test_only_means_of_positions_tie_latents_to_a_size() -> None:
    other = noise(shape=(3, 4, 2, 6))
    for kind in ("min_max", "per_channel"):
        scaling = fitted(kind)
        torch.testing.assert_close(scaling.inverse(scaling(other)), other)
    with pytest.raises(ValueError, match=r"\[3, 2, 4, 5\], got \[2, 3, 4, 2, 6\]"):
        fitted("per_position")(other)


# --- sampling ---


@pytest.mark.parametrize(("kind", "sampler", "prediction"), product(SCALINGS, SAMPLERS, PREDICTIONS))
def test_a_perfect_denoiser_of_scaled_latents_leads_to_the_latent(kind: str, sampler: str, prediction: str) -> None:
    latent = latents()[0]
    alphas = noise_scheduler(T, prediction).alphas_cumprod
    settings = {} if sampler == "ddpm" else {"num_inference_steps": 6}
    perfect = generator(Oracle(fitted(kind)(latent), alphas, prediction), prediction, sampler=sampler, **settings)
    perfect.latent_scaling.fit(kind, latents())
    torch.testing.assert_close(perfect.sample_latent(noise()), latent, atol=2e-4, rtol=0)


def test_samplers_clip_to_the_bound() -> None:
    """With the noise of a far too large latent, one step ends where the clipping does."""
    network = generator(Oracle(torch.full((2, *SHAPE), 50.0), noise_scheduler(T).alphas_cumprod, "sample"))
    network.prediction.fill_(PREDICTIONS.index("sample"))
    network.latent_scaling.fit("per_channel", latents())
    scaling = network.latent_scaling
    torch.testing.assert_close(
        network.sample_latent(noise()), (scaling.bound * scaling.scale + scaling.shift).expand(2, *SHAPE)
    )


@pytest.mark.parametrize(("kind", "prediction"), product(SCALINGS, PREDICTIONS))
def test_scripted_generator_equals_the_eager_one_with_every_scaling(kind: str, prediction: str) -> None:
    network, buffer = generator(Shrink(), prediction, sampler="dpmpp_2m", num_inference_steps=5), io.BytesIO()
    network.latent_scaling.fit(kind, latents())
    torch.jit.save(torch.jit.script(network), buffer)
    buffer.seek(0)
    scripted = torch.jit.load(buffer)
    torch.testing.assert_close(scripted.sample_latent(noise()), network.sample_latent(noise()), atol=1e-5, rtol=0)
    torch.testing.assert_close(scripted(noise()), network(noise()), atol=1e-5, rtol=0)


# --- weights ---


@pytest.mark.parametrize("shape", [SHAPE, None])
@pytest.mark.parametrize("kind", SCALINGS)
def test_weights_bring_the_scaling(tmp_path, kind: str, shape) -> None:
    trained = generator(Shrink())
    trained.latent_scaling.fit(kind, latents())
    save_weights(trained, tmp_path / "model.pt", {})
    other = generator(Shrink(), shape=shape)
    load_weights(other, tmp_path / "model.pt")
    assert torch.equal(other.sample_latent(noise()), trained.sample_latent(noise()))


def test_a_state_dict_brings_the_scaling_without_load_weights_too() -> None:
    trained, other = generator(Shrink()), generator(Shrink(), shape=None)
    trained.latent_scaling.fit("per_position", latents())
    other.load_state_dict(trained.state_dict())
    assert torch.equal(other.sample_latent(noise()), trained.sample_latent(noise()))


def test_monai_copies_the_scaling_when_it_exports() -> None:
    """``copy_model_state``, which ``ckpt_export`` calls, leaves out what has another shape: here all has the same."""
    trained, exported = generator(Shrink()), generator(Shrink())
    trained.latent_scaling.fit("per_position", latents())
    copy_model_state(exported, trained.state_dict())
    assert torch.equal(exported.sample_latent(noise()), trained.sample_latent(noise()))


def test_weights_from_before_scalings_were_chosen_are_min_max(tmp_path) -> None:
    old = {name: tensor for name, tensor in generator(Shrink()).state_dict().items() if "latent_scaling" not in name}
    torch.save(old, tmp_path / "model.pt")
    network = generator(Shrink())
    network.latent_scaling.fit("per_position", latents())
    load_weights(network, tmp_path / "model.pt")
    assert torch.equal(network.sample_latent(noise()), generator(Shrink()).sample_latent(noise()))


def test_weights_with_half_a_scaling_are_refused(tmp_path) -> None:
    state = generator(Shrink()).state_dict()
    del state["latent_scaling.scale"]
    torch.save(dict(state), tmp_path / "model.pt")
    with pytest.raises(WeightsError, match=r"1 missing \(such as latent_scaling.scale\)"):
        load_weights(generator(Shrink()), tmp_path / "model.pt")
