"""Training and evaluation loops of the first stage."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from monai.engines import Evaluator, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from medical_diffusion_components.engines.plain_images import plain_images
from medical_diffusion_components.losses.adversarial import AdversarialSchedule
from medical_diffusion_components.losses.slices import random_slices
from medical_diffusion_components.losses.terms import total
from medical_diffusion_components.losses.vqgan import DiscriminatorPair, VQGANLoss
from medical_diffusion_components.networks.discriminators import DiscriminatorOutput
from medical_diffusion_components.weights import unwrap

__all__ = ["VQGANEvaluator", "VQGANTrainer"]


class Judgement(NamedTuple):
    """What one pass of the discriminators gives, detached.

    Attributes:
        adversarial: the generator's weighted terms; none before they count.
        gradients: gradients of their sum for the reconstructed slices and volumes; none before they count.
        discriminators: the terms of the discriminators' own step.
    """

    adversarial: dict[str, Tensor]
    gradients: Sequence[Tensor]
    discriminators: dict[str, Tensor]


class VQGANTrainer(Trainer):
    """Trains a VQ-GAN and its two discriminators; one pass of encoder and decoder per batch serves all three.

    Every batch: reconstruct; step the generator on the reconstruction terms, the commitment loss and, once the schedule
    says so, the discriminators' terms; then step the discriminators on the same reconstruction, detached. The
    discriminators look at real and reconstructed volumes once: what they say is differentiated for the reconstruction
    and for their own weights, and their activations are gone before the generator's backward pass begins.
    ``engine.state.output`` is a dict of detached scalars: the weighted terms, their sum ``loss``, and what the codebook
    reports.

    Args:
        device: where to train.
        max_epochs: epochs in total, including those before a resume.
        train_data_loader: batches with ``image`` (B, C, H, W, D) in [-1, 1] and ``case_id``.
        network: the :class:`~medical_diffusion_components.networks.vqgan.VQGAN`, possibly distributed.
        slice_discriminator: discriminator of slices (B, C, H, W).
        volume_discriminator: discriminator of volumes (B, C, H, W, D).
        optimizer: optimiser of ``network``.
        discriminator_optimizer: optimiser of both discriminators.
        loss_function: the weighted terms.
        schedule: when discriminators and adversarial terms start, in batches.
        gradient_clip: largest norm of the gradient of the network, and of the discriminators.
        amp: bfloat16 autocast. float16 is not offered: the codebook's distances overflow in it.
        train_handlers: MONAI or Ignite handlers.
    """

    def __init__(
        self,
        device: torch.device | str,
        max_epochs: int,
        train_data_loader: Iterable | DataLoader,
        network: nn.Module,
        slice_discriminator: nn.Module,
        volume_discriminator: nn.Module,
        optimizer: Optimizer,
        discriminator_optimizer: Optimizer,
        loss_function: VQGANLoss,
        schedule: AdversarialSchedule,
        gradient_clip: float = 1.0,
        amp: bool = False,
        train_handlers: Sequence | None = None,
    ) -> None:
        super().__init__(device, max_epochs, train_data_loader, handlers=train_handlers, decollate=False)
        self.network = network
        self.slice_discriminator = slice_discriminator
        self.volume_discriminator = volume_discriminator
        self.discriminators = nn.ModuleList([slice_discriminator, volume_discriminator])
        self.optimizer = optimizer
        self.discriminator_optimizer = discriminator_optimizer
        self.loss_function = loss_function
        self.schedule = schedule
        self.gradient_clip = gradient_clip
        self.autocast = torch.autocast(self.state.device.type, dtype=torch.bfloat16, enabled=amp)

    def _iteration(self, engine: Trainer, batchdata: dict) -> dict[str, Tensor]:
        batch = engine.state.iteration - 1
        real = plain_images(batchdata, engine.state.device, self.non_blocking)
        self.network.train()
        self.discriminators.train()
        with self.autocast:
            fake, coded = self.network(real)
            fake_slice, real_slice = random_slices(fake, real)
            terms = self.loss_function.reconstruction(fake, real, fake_slice, real_slice)
        terms["commitment"] = coded.commitment_loss

        roots: list[Tensor] = [total(terms.values())]
        gradients: list[Tensor | None] = [None]
        judgement = None
        if self.schedule.discriminators_train(batch):
            weight = self.schedule.generator_weight(batch)
            judgement = self._judge(fake_slice, fake, real_slice, real, weight)
            if weight > 0:
                terms |= judgement.adversarial
                roots += [fake_slice, fake]
                gradients += judgement.gradients
        terms["loss"] = total(terms.values())

        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(roots, gradients)
        self._step(self.optimizer, self.network)
        if judgement is not None:
            self._step(self.discriminator_optimizer, self.discriminators)
            terms |= judgement.discriminators
        terms |= {name: getattr(coded, name) for name in ("perplexity", "used_codes", "restarted_codes")}
        return {name: value.detach() for name, value in terms.items()}

    def _judge(self, fake_slice: Tensor, fake: Tensor, real_slice: Tensor, real: Tensor, weight: float) -> Judgement:
        """One pass of the discriminators; the gradients of their own terms are left in their parameters.

        Args:
            fake_slice, real_slice: (B, C, H, W).
            fake, real: (B, C, H, W, D).
            weight: factor of the generator's adversarial terms.
        """
        seen = [image.detach().requires_grad_(weight > 0) for image in (fake_slice, fake)]
        real_verdict, fake_verdict = self._discriminate(real_slice, real), self._discriminate(*seen)
        adversarial: dict[str, Tensor] = {}
        gradients: Sequence[Tensor] = ()
        if weight > 0:
            unweighted = self.loss_function.adversarial(fake_verdict, real_verdict)
            adversarial = {name: weight * term for name, term in unweighted.items()}
            gradients = torch.autograd.grad(total(adversarial.values()), seen, retain_graph=True)
        discriminators = self.loss_function.discriminators(fake_verdict, real_verdict)
        self.discriminator_optimizer.zero_grad(set_to_none=True)
        # only for the parameters: the first convolution's gradient for a whole volume would serve nobody
        parameters = list(self.discriminators.parameters())
        torch.autograd.backward(total(discriminators.values()), inputs=parameters)
        adversarial, discriminators = (
            {name: t.detach() for name, t in terms.items()} for terms in (adversarial, discriminators)
        )
        return Judgement(adversarial, gradients, discriminators)

    def _discriminate(self, slices: Tensor, volumes: Tensor) -> DiscriminatorPair:
        with self.autocast:
            verdicts = self.slice_discriminator(slices), self.volume_discriminator(volumes)
        # the losses are means over thousands of patches: not in bfloat16
        return DiscriminatorPair(
            *(DiscriminatorOutput(v.logits.float(), [f.float() for f in v.features]) for v in verdicts)
        )

    def _step(self, optimizer: Optimizer, module: nn.Module) -> None:
        nn.utils.clip_grad_norm_(module.parameters(), self.gradient_clip)
        optimizer.step()


class VQGANEvaluator(Evaluator):
    """Reconstructs held-out volumes; the codebook does not change.

    ``engine.state.output`` holds ``image``, ``pred`` (the reconstruction), both (B, C, H, W, D), and ``indices``, the
    codes used (B, h, w, d), for the metrics.

    Args:
        device: where to evaluate.
        val_data_loader: batches with ``image`` and ``case_id``.
        network: the VQ-GAN, possibly distributed.
        amp: bfloat16 autocast.
        kwargs: further arguments of MONAI's ``Evaluator``: ``key_val_metric``, the one metric that decides which weights
            are best, ``additional_metrics``, ``metric_cmp_fn``, ``val_handlers``.
    """

    def __init__(
        self,
        device: torch.device | str,
        val_data_loader: Iterable | DataLoader,
        network: nn.Module,
        *,
        amp: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(device, val_data_loader, decollate=False, **kwargs)
        self.network = network
        self.autocast = torch.autocast(self.state.device.type, dtype=torch.bfloat16, enabled=amp)

    def _iteration(self, engine: Evaluator, batchdata: dict) -> dict[str, Tensor]:
        image = plain_images(batchdata, engine.state.device, self.non_blocking)
        network = unwrap(self.network)
        network.eval()
        with torch.no_grad(), self.autocast:
            indices = network.codebook.nearest(network.encode(image))
            pred = network.decode(network.codebook.embed(indices))
        return {"image": image, "pred": pred.float().clamp(-1.0, 1.0), "indices": indices}
