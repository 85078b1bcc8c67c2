"""Conditions in training and sampling; and without them everything as it was before there were any."""

from __future__ import annotations

import hashlib
import json
import math

import pytest
import torch
from monai.inferers import DiffusionInferer
from torch import Tensor

from medical_diffusion_components import chance
from medical_diffusion_components.chance import reseed
from medical_diffusion_components.diffusion import (
    ConditionalInferer,
    HeldOutPrepareBatch,
    LatentDiffusionGenerator,
    TrainingPrepareBatch,
    noise_scheduler,
)
from medical_diffusion_components.networks import Denoiser

SMALL = {"base_channels": 8, "channel_multipliers": (1, 2), "num_heads": 2, "head_channels": 4, "norm_groups": 4}
# of the code before there were conditions; hashes of whole numbers alone, which every processor has alike
TENSORS_SHA256 = "2e3e09e74ab1aed7c613ed350a5e222120353d0c0abc9a3203259c3d34c39a8c"
CONSTRUCTED_SHA256 = "7cb1dbe7422762c6fb4b7eb11f08e3c968a579e3b1d67b38b0a4199823824ee8"  # states of torch's generator
TRAINED_SHA256 = "7b92ec904df66164ac8d75161bcf89e520a2ce74b2c58ef3818d4a8aca375d60"
LOSSES = [0.887201, 0.856611, 0.891745, 0.896775, 0.862782, 0.906542]


def digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def short_training(**knobs) -> tuple[Denoiser, list[float], Tensor]:
    """Six steps from a fixed seed: the network, its losses, and the state of torch's generator afterwards."""
    torch.manual_seed(3)
    denoiser = Denoiser(in_channels=4, **SMALL, **knobs)
    scheduler = noise_scheduler(50)
    prepare, inferer = TrainingPrepareBatch(scheduler), DiffusionInferer(scheduler)
    optimizer = torch.optim.Adam(denoiser.parameters(), 1e-3)
    latents = torch.randn(2, 4, 4, 6, 3, generator=torch.Generator().manual_seed(4))
    losses = []
    for iteration in range(6):
        if iteration == 3:  # the first three draw from where the construction left the generator
            reseed(5, iteration)
        images, target, _, inputs = prepare({"image": latents})
        loss = (inferer(images, denoiser, **inputs) - target).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return denoiser, losses, torch.get_rng_state()


def test_without_conditions_tensors_draws_and_losses_are_what_they_were() -> None:
    denoiser, losses, state = short_training()
    tensors = [[name, list(tensor.shape)] for name, tensor in denoiser.state_dict().items()]
    assert digest(tensors) == TENSORS_SHA256
    assert digest(state.tolist()) == TRAINED_SHA256
    torch.testing.assert_close(losses, LOSSES, rtol=1e-4, atol=0)
    torch.manual_seed(3)
    Denoiser(in_channels=4, **SMALL)
    assert digest(torch.get_rng_state().tolist()) == CONSTRUCTED_SHA256


DECLARED = {"age": {"range": [50, 90]}, "sex": {"values": ["F", "M", "O"]}}
ASKED = torch.tensor([[0.5, 1.0], [-0.25, math.nan], [math.nan, math.nan]])


def conditional() -> Denoiser:
    """A denoiser whose conditions count: their last layers are no longer zero."""
    torch.manual_seed(3)
    denoiser = Denoiser(in_channels=4, **SMALL, conditions=DECLARED)
    for condition in denoiser.conditions:
        torch.nn.init.normal_(condition.last.weight, std=0.5)
    return denoiser.eval()


def latents(batch: int = 3) -> Tensor:
    return torch.randn(batch, 4, 4, 6, 3, generator=torch.Generator().manual_seed(4))


# --- denoiser ---


def test_conditions_say_nothing_at_first_and_leave_the_rest_as_it_begins() -> None:
    torch.manual_seed(3)
    plain = Denoiser(in_channels=4, **SMALL)
    torch.manual_seed(3)
    denoiser = Denoiser(in_channels=4, **SMALL, conditions=DECLARED)
    state = denoiser.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in plain.state_dict().items())
    times = torch.tensor([3, 40, 7])
    assert torch.equal(denoiser(latents(), times, ASKED), plain(latents(), times))


def test_each_condition_counts_and_none_at_all_is_all_missing() -> None:
    denoiser, x, times = conditional(), latents(), torch.tensor([3, 40, 7])
    seen = denoiser(x, times, ASKED)
    for place, other in ((0, 0.25), (1, 2.0)):
        changed = ASKED.clone()
        changed[:, place] = other
        assert not torch.allclose(denoiser(x, times, changed)[1], seen[1])
    assert torch.equal(denoiser(x, times), denoiser(x, times, torch.full((3, 2), math.nan)))
    torch.testing.assert_close(seen[2], denoiser(x, times)[2])


def test_missing_values_leave_gradients_finite_and_reach_the_learned_vector() -> None:
    denoiser = conditional()
    denoiser(latents(), torch.tensor([3, 40, 7]), ASKED).square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in denoiser.parameters() if parameter.requires_grad)
    assert all(condition.missing.grad.abs().sum() > 0 for condition in denoiser.conditions)


def test_conditions_of_another_number_and_class_labels_are_refused() -> None:
    denoiser, times = conditional(), torch.tensor([3])
    with pytest.raises(ValueError, match=r"conditions \(B, V\), a row for each volume, \[3, 2\], got \[3, 1\]"):
        denoiser(latents(), times, ASKED[:, :1])
    with pytest.raises(ValueError, match="no class_labels"):
        denoiser(latents(), times, class_labels=torch.zeros(3))


# --- training ---


def dropped(rows: int, dropout: float, seed: int = 0) -> Tensor:
    prepare = TrainingPrepareBatch(noise_scheduler(50), "conditions", condition_dropout=dropout)
    reseed(seed)
    batch = {"image": torch.zeros(rows, 1, 1, 1, 1), "conditions": torch.ones(rows, 3)}
    return prepare(batch)[3]["condition"]


def test_each_and_all_conditions_are_hidden_as_often_as_asked() -> None:
    hidden = dropped(8000, 0.2).isnan()
    assert abs(hidden.float().mean() - (1 - 0.8 * 0.8)) < 0.02
    alone = [0.2 * 0.8**3] * 3  # one condition only: itself, neither of the others, and not all
    for place, share in enumerate(alone):
        only = hidden[:, place] & (hidden.sum(1) == 1)
        assert abs(only.float().mean() - share) < 0.01
    assert abs(hidden.all(1).float().mean() - (0.2 + 0.8 * 0.2**3)) < 0.01
    assert not dropped(1000, 0.0).isnan().any()


def test_hiding_follows_from_the_seed_and_leaves_noise_and_timesteps_alone() -> None:
    assert torch.equal(dropped(50, 0.3, 1).isnan(), dropped(50, 0.3, 1).isnan())
    assert not torch.equal(dropped(50, 0.3, 1).isnan(), dropped(50, 0.3, 2).isnan())
    batch = {"image": latents(), "conditions": ASKED}
    drawn = []
    for name in (None, "conditions"):
        reseed(5)
        drawn.append(TrainingPrepareBatch(noise_scheduler(50), name)(batch)[3])
    assert torch.equal(drawn[0]["noise"], drawn[1]["noise"])
    assert torch.equal(drawn[0]["timesteps"], drawn[1]["timesteps"])


def test_several_processes_hide_what_one_would(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = dropped(8, 0.4)
    monkeypatch.setattr(chance, "world_size", lambda: 2)
    shares = []
    for rank in range(2):
        monkeypatch.setattr(chance, "process_rank", lambda rank=rank: rank)
        shares.append(dropped(4, 0.4))
    together = torch.stack(shares, dim=1).flatten(0, 1)  # rows in turn
    assert torch.equal(together.isnan(), whole.isnan())


def test_held_out_conditions_are_never_hidden() -> None:
    prepare = HeldOutPrepareBatch(noise_scheduler(50), "conditions")
    batch = {"image": latents(), "conditions": ASKED, "case_id": list("abc"), "draw": [0] * 3, "draws": [1] * 3}
    torch.testing.assert_close(prepare(batch)[3]["condition"], ASKED, equal_nan=True)


@pytest.mark.parametrize("dropout", [-0.1, 1.0])
def test_impossible_dropout_is_refused(dropout: float) -> None:
    with pytest.raises(ValueError, match="condition_dropout must be in"):
        TrainingPrepareBatch(noise_scheduler(50), "conditions", condition_dropout=dropout)


# --- sampling ---


class Decoder(torch.nn.Module):
    """Stands for the first stage: the latent is the volume."""

    def decode_stage_2_outputs(self, x: Tensor) -> Tensor:
        return x


class Counting(torch.nn.Module):
    """Counts the calls of a denoiser, and the rows of each."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.rows: list[int] = []

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor | None = None) -> Tensor:
        self.rows.append(len(x))
        return self.denoiser(x, timesteps, context)


def generator(denoiser: torch.nn.Module, prediction: str = "epsilon", sampler: str = "dpmpp_2m", **knobs):
    steps = 10 if sampler == "ddpm" else 4
    made = LatentDiffusionGenerator(Decoder(), denoiser, noise_scheduler(10, prediction), sampler, steps, **knobs)
    return made.eval()


WAYS = [
    ("epsilon", "ddpm"),
    ("epsilon", "ddim"),
    ("v_prediction", "dpmpp_2m"),
    ("sample", "ddim"),
    ("flow", "dpmpp_2m"),
]


@pytest.mark.parametrize(("prediction", "sampler"), WAYS)
def test_every_sampler_follows_its_conditions(prediction: str, sampler: str) -> None:
    noise = latents()
    free = generator(conditional(), prediction, sampler)
    guided = generator(conditional(), prediction, sampler, guidance_scale=2.0)
    assert not torch.allclose(free(noise, ASKED)[:2], free(noise)[:2], atol=1e-3)
    assert not torch.allclose(free(noise, ASKED)[:2], guided(noise, ASKED)[:2], atol=1e-3)
    torch.testing.assert_close(guided(noise), free(noise))  # without conditions there is nothing to guide by
    torch.testing.assert_close(guided(noise, ASKED)[2], free(noise)[2], atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_guided_sampling_is_the_same_scripted() -> None:
    guided = generator(conditional(), "flow", guidance_scale=2.0, guidance_interval=(0.2, 0.8))
    scripted = torch.jit.script(guided)
    for asked in (ASKED, None):
        torch.testing.assert_close(scripted(latents(), asked), guided(latents(), asked), atol=1e-4, rtol=1e-4)


def test_guidance_is_the_stated_combination_of_two_predictions() -> None:
    denoiser, x, times = conditional(), latents(), torch.full((3,), 6)
    asked, free = denoiser(x, times, ASKED), denoiser(x, times)
    for scale in (0.0, 0.5, 3.0):
        found = generator(denoiser, guidance_scale=scale)._predict(x, times, ASKED)
        torch.testing.assert_close(found, free + scale * (asked - free), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("scale", "interval", "rows"), [
    (1.0, (0.0, 1.0), [3] * 10),
    (2.0, (0.0, 1.0), [6] * 10),
    (2.0, (0.3, 0.7), [3] * 3 + [6] * 4 + [3] * 3),  # timesteps 9, 8, 7; 6, 5, 4, 3; 2, 1, 0 of 9
])  # fmt: skip
def test_guidance_costs_one_batch_twice_as_large_within_its_interval(
    scale: float, interval: tuple[float, float], rows: list[int]
) -> None:
    counting = Counting(conditional())
    generator(counting, sampler="ddpm", guidance_scale=scale, guidance_interval=interval)(latents(), ASKED)
    assert counting.rows == rows


@pytest.mark.parametrize(("knobs", "message"), [
    ({"guidance_scale": -1.0}, "guidance_scale must be at least 0"),
    ({"guidance_scale": math.nan}, "guidance_scale must be at least 0"),
    ({"guidance_interval": (0.7, 0.3)}, "guidance_interval must be two ascending shares"),
    ({"guidance_interval": (0.0, 2.0)}, "guidance_interval must be two ascending shares"),
    ({"guidance_interval": (0.0,)}, "guidance_interval must be two ascending shares"),
])  # fmt: skip
def test_impossible_guidance_is_refused(knobs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generator(conditional(), **knobs)


def test_noise_that_comes_alone_gets_the_default_conditions() -> None:
    network = generator(conditional())
    noise = latents(2)
    expected = network(noise, ASKED[:1].expand(2, -1))
    assert torch.equal(ConditionalInferer(ASKED[0])(noise, network), expected)
    assert torch.equal(ConditionalInferer(ASKED[1])(noise, network, ASKED[:1].expand(2, -1)), expected)
    assert torch.equal(ConditionalInferer()(noise, network), network(noise))
