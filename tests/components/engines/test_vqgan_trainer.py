from __future__ import annotations

import copy
import weakref
from collections import Counter
from itertools import pairwise

import pytest
import torch
from ignite.engine import Events
from monai.data import MetaTensor
from torch import Tensor, nn

from medical_diffusion_components.engines.vqgan_trainer import VQGANEvaluator, VQGANTrainer
from medical_diffusion_components.losses.adversarial import AdversarialSchedule
from medical_diffusion_components.losses.slices import random_slices
from medical_diffusion_components.losses.vqgan import DiscriminatorPair, VQGANLoss
from medical_diffusion_components.metrics.codebook_usage import CodebookPerplexity
from medical_diffusion_components.networks.codebook import EMACodebook
from medical_diffusion_components.networks.discriminators import PatchDiscriminator
from medical_diffusion_components.networks.vqgan import VQGAN

TERMS = {"l1", "perceptual", "commitment", "loss", "perplexity", "used_codes", "restarted_codes"}
ADVERSARIAL = {"slice_adversarial", "volume_adversarial", "feature_matching"}
DISCRIMINATORS = {"slice_discriminator", "volume_discriminator"}


class MeanSquare(nn.Module):
    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return (input.float() - target.float()).square().mean()


class Parts:
    """A small trainer with all that belongs to it."""

    def __init__(
        self,
        schedule=(0, 0, 0),
        batches: int = 3,
        epochs: int = 1,
        l1_weight=4.0,
        lr=0.1,
        size=(8, 12, 9),
        **settings,
    ) -> None:
        torch.manual_seed(0)
        self.network = VQGAN(EMACodebook(20, 3), base_channels=4, compression=(2, 2, 1), norm_groups=4)
        self.slice_discriminator, self.volume_discriminator = (
            PatchDiscriminator(2, channels=2),
            PatchDiscriminator(3, channels=2),
        )
        self.discriminators = nn.ModuleList([self.slice_discriminator, self.volume_discriminator])
        self.loss = VQGANLoss(MeanSquare(), l1_weight=l1_weight)
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=lr)
        self.discriminator_optimizer = torch.optim.SGD(self.discriminators.parameters(), lr=lr)
        self.data = [{"image": torch.rand(2, 1, *size) * 2 - 1, "case_id": ["a", "b"]} for _ in range(batches)]
        self.trainer = VQGANTrainer(
            "cpu",
            epochs,
            self.data,
            self.network,
            self.slice_discriminator,
            self.volume_discriminator,
            self.optimizer,
            self.discriminator_optimizer,
            self.loss,
            AdversarialSchedule(*schedule),
            **settings,
        )
        self.outputs: list[dict[str, Tensor]] = []
        self.trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: self.outputs.append(e.state.output))

    def run(self) -> Parts:
        self.trainer.run()
        return self


def values(module: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def gradients(module: nn.Module) -> dict[str, Tensor | None]:
    return {name: None if p.grad is None else p.grad.clone() for name, p in module.named_parameters()}


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(
        a[name] is b[name] or (a[name] is not None and b[name] is not None and torch.equal(a[name], b[name]))
        for name in a
    )


def by_hand(parts: Parts, weight: float) -> None:
    """One batch as the papers have it: every loss with a forward pass of its own, nothing shared, no clipping."""
    real, loss, network = parts.data[0]["image"], parts.loss, parts.network.train()
    fake, coded = network(real)
    fake_slice, real_slice = random_slices(fake, real)

    def verdict(slices: Tensor, volumes: Tensor) -> DiscriminatorPair:
        return DiscriminatorPair(parts.slice_discriminator(slices), parts.volume_discriminator(volumes))

    terms = loss.reconstruction(fake, real, fake_slice, real_slice)
    adversarial = loss.adversarial(verdict(fake_slice, fake), verdict(real_slice, real))
    total = sum(terms.values()) + weight * sum(adversarial.values()) + coded.commitment_loss
    for parameter, gradient in zip(network.parameters(), torch.autograd.grad(total, list(network.parameters()))):
        parameter.grad = gradient
    discriminator_loss = sum(
        loss.discriminators(verdict(fake_slice.detach(), fake.detach()), verdict(real_slice, real)).values()
    )
    discriminator_parameters = list(parts.discriminators.parameters())
    for parameter, gradient in zip(
        discriminator_parameters, torch.autograd.grad(discriminator_loss, discriminator_parameters)
    ):
        parameter.grad = gradient
    parts.optimizer.step()
    parts.discriminator_optimizer.step()


# --- one batch ---


@pytest.mark.parametrize("ramp, weight", [(0, 1.0), (4, 0.25)])
def test_one_batch_equals_separate_passes_written_out(ramp, weight):
    parts = Parts((0, 0, ramp), batches=1, gradient_clip=1e9)
    for parameter in [*parts.network.parameters(), *parts.discriminators.parameters()]:
        parameter.grad = torch.full_like(parameter, 7.0)  # of an earlier batch
    other = Parts((0, 0, ramp), batches=1)
    torch.manual_seed(8)
    parts.run()
    torch.manual_seed(8)
    by_hand(other, weight)
    for ours, theirs in ((parts.network, other.network), (parts.discriminators, other.discriminators)):
        torch.testing.assert_close(values(ours), values(theirs), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(parts.network.codebook.state_dict(), other.network.codebook.state_dict())


def test_encoder_and_decoder_run_exactly_once_per_batch():
    parts, calls = Parts(), Counter()
    for name in ("encoder", "codebook", "decoder"):
        part = getattr(parts.network, name)
        part.register_forward_hook(lambda *_, name=name: calls.update([name]))
    parts.run()
    assert calls == {"encoder": 3, "codebook": 3, "decoder": 3}


def test_step_of_the_generator_leaves_the_discriminators_alone_and_theirs_the_generator():
    parts, steps = Parts(), []
    before, network_at_step = values(parts.discriminators), {}

    def generator_steps(*_) -> None:
        assert equal(values(parts.discriminators), before)
        network_at_step.update(gradients=gradients(parts.network))
        steps.append("generator")

    def generator_stepped(*_) -> None:
        network_at_step.update(values=values(parts.network))

    def discriminators_stepped(*_) -> None:
        assert equal(gradients(parts.network), network_at_step["gradients"])
        assert equal(values(parts.network), network_at_step["values"])
        assert not equal(values(parts.discriminators), before)
        before.update(values(parts.discriminators))
        steps.append("discriminators")

    parts.optimizer.register_step_pre_hook(generator_steps)
    parts.optimizer.register_step_post_hook(generator_stepped)
    parts.discriminator_optimizer.register_step_post_hook(discriminators_stepped)
    parts.run()
    assert steps == ["generator", "discriminators"] * 3


@pytest.mark.parametrize("start, passes", [(0, 6), (2, 2)])
def test_discriminators_look_once_at_real_and_once_at_reconstructed_volumes(start, passes):
    parts, calls = Parts(schedule=(start, 0, 0)), Counter()
    for name in ("slice_discriminator", "volume_discriminator"):
        getattr(parts, name).register_forward_hook(lambda *_, name=name: calls.update([name]))
    parts.run()
    assert calls == {"slice_discriminator": passes, "volume_discriminator": passes}


def test_activations_of_the_discriminators_are_gone_before_the_generator_differentiates():
    parts, alive = Parts(batches=1), []
    parts.volume_discriminator.register_forward_hook(lambda m, args, out: alive.append(weakref.ref(out.features[0])))
    parts.network.decoder.conv_out.conv.weight.register_hook(lambda _: alive.append([ref() for ref in alive]))
    parts.run()
    assert alive[2] == [None, None]


@pytest.mark.parametrize("clip", [1.0, 0.03])
def test_gradients_are_clipped_to_the_given_norm(clip):
    parts = Parts(batches=1, l1_weight=1e4, lr=1.0, gradient_clip=clip)
    parts.loss.slice_weight = parts.loss.volume_weight = 1e4
    before = values(parts.network), values(parts.discriminators)
    parts.run()
    for module, old in zip((parts.network, parts.discriminators), before):
        moved = torch.cat([(new - old[name]).flatten() for name, new in values(module).items()]).norm()
        assert moved.item() == pytest.approx(clip, rel=1e-3)  # plain descent of rate 1 moves by the gradient


# --- the schedule ---


def test_discriminators_train_and_count_from_their_batches_on_over_epochs():
    parts = Parts(schedule=(4, 2, 2), batches=2, epochs=4)
    states = [values(parts.discriminators)]
    parts.trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda _: states.append(values(parts.discriminators)))
    parts.run()
    assert [equal(a, b) for a, b in pairwise(states)] == [True] * 2 + [False] * 6
    expected = [TERMS] * 2 + [TERMS | DISCRIMINATORS] * 2 + [TERMS | DISCRIMINATORS | ADVERSARIAL] * 4
    assert [set(output) for output in parts.outputs] == expected


def test_before_their_start_the_discriminators_see_nothing():
    parts, calls = Parts(schedule=(9, 0, 0)), []
    for discriminator in parts.discriminators:
        discriminator.register_forward_hook(lambda *_: calls.append(1))
    parts.run()
    assert not calls


def test_output_holds_detached_scalars_and_loss_is_the_sum_of_the_generator_terms():
    for output in Parts(schedule=(1, 0, 4)).run().outputs:
        assert all(value.ndim == 0 and not value.requires_grad for value in output.values())
        terms = (ADVERSARIAL | {"l1", "perceptual", "commitment"}) & set(output)
        assert output["loss"].item() == pytest.approx(sum(output[name].item() for name in terms), rel=1e-5)


@pytest.mark.slow
def test_reconstruction_improves():
    parts = Parts(schedule=(10**6, 0, 0), batches=1, epochs=25).run()
    first, last = parts.outputs[0]["l1"], parts.outputs[-1]["l1"]
    assert last < 0.8 * first


def test_mixed_precision_stays_finite_and_the_codebook_float32():
    parts, seen = Parts(batches=4, amp=True, size=(24, 28, 22)), set()
    parts.network.decoder.conv_out.register_forward_hook(lambda module, args, out: seen.add(out.dtype))
    parts.volume_discriminator.register_forward_hook(lambda module, args, out: seen.add(out.logits.dtype))
    adversarial, judged = parts.loss.adversarial, set()

    def watched(fake, real):
        judged.update(t.dtype for pair in (fake, real) for v in pair for t in (v.logits, *v.features))
        return adversarial(fake, real)

    parts.loss.adversarial = watched
    parts.run()
    assert seen == {torch.bfloat16} and judged == {torch.float32}
    assert all(value.isfinite() for output in parts.outputs for value in output.values())
    assert all(p.isfinite().all() and p.dtype == torch.float32 for p in parts.network.parameters())
    codebook = parts.network.codebook
    assert codebook.codes.dtype == codebook.ema_sums.dtype == torch.float32
    assert parts.outputs[0]["commitment"].dtype == parts.outputs[0]["loss"].dtype == torch.float32


# --- evaluation ---


def evaluated(network: VQGAN, image: Tensor, **settings) -> VQGANEvaluator:
    evaluator = VQGANEvaluator("cpu", [{"image": image, "case_id": ["a", "b"]}], network, **settings)
    evaluator.run()
    return evaluator


def test_evaluation_reconstructs_and_changes_nothing():
    network, image = Parts(batches=2).run().network, torch.rand(2, 1, 8, 12, 9)
    before = copy.deepcopy(network.state_dict())
    output = evaluated(network, image).state.output
    assert not network.training and network.state_dict().keys() == before.keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())

    encoded = network.encode(image).detach()
    distances = torch.cdist(encoded.movedim(1, -1).reshape(-1, 3).double(), network.codebook.codes.double())
    assert torch.equal(output["indices"].flatten(), distances.argmin(1))
    torch.testing.assert_close(output["pred"], network.reconstruct(image).detach())
    assert torch.equal(output["image"], image) and not output["pred"].requires_grad


def test_evaluation_gives_plain_tensors_to_metrics():
    network, image = Parts(batches=1).run().network, torch.rand(2, 1, 8, 12, 9)
    evaluator = evaluated(
        network, MetaTensor(image), key_val_metric={"val_perplexity": CodebookPerplexity(20)}, amp=True
    )
    output = evaluator.state.output
    assert all(type(value) is Tensor for value in output.values())
    assert output["pred"].dtype == torch.float32
    counts = output["indices"].flatten().bincount().double()
    share = counts[counts > 0] / counts.sum()
    assert evaluator.state.metrics["val_perplexity"] == pytest.approx(torch.exp(-(share * share.log()).sum()).item())


def test_training_after_an_evaluation_goes_on_in_training_mode():
    parts = Parts(batches=2)
    codes = []

    def evaluate(_) -> None:
        evaluated(parts.network, parts.data[0]["image"])
        codes.append(parts.network.codebook.codes.clone())

    parts.trainer.add_event_handler(Events.ITERATION_COMPLETED, evaluate)
    parts.run()
    assert not torch.equal(*codes)
