"""Training loop of the GAN baseline."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from typing import cast

import torch
from monai.engines import Trainer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from medical_diffusion_components.chance import draw_integers, draw_normal
from medical_diffusion_components.engines.plain_images import plain_images
from medical_diffusion_components.losses.terms import total
from medical_diffusion_components.losses.wgan import AlphaWGANLoss, gradient_penalty

__all__ = ["AlphaWGANTrainer"]


class AlphaWGANTrainer(Trainer):
    """Trains generator and encoder, then the discriminator of volumes, then that of codes, once each per batch.

    The discriminators see the volumes and codes that the generator's step has made. The running statistics of the
    generator's batch norms, which sampling uses, are those of drawn codes alone: codes of the encoder are spread
    otherwise, and with the statistics of both, samples are black. ``engine.state.output`` is a dict
    of detached scalars: the weighted terms (:class:`~medical_diffusion_components.losses.AlphaWGANLoss`) and ``loss``,
    the sum of those of encoder and generator.

    Args:
        device: where to train.
        max_epochs: epochs in total, including those before a resume.
        train_data_loader: batches with ``image`` (B, C, H, W, D) in [-1, 1].
        network: code (B, K, 1, 1, 1) -> volume.
        encoder: volume -> code.
        discriminator: volume -> (B,).
        code_discriminator: code -> (B,).
        optimizer: optimiser of ``network`` and ``encoder``.
        discriminator_optimizer: optimiser of ``discriminator``.
        code_optimizer: optimiser of ``code_discriminator``.
        loss_function: the weighted terms.
        generator_steps: steps of encoder and generator per batch; the published code makes two.
        train_handlers: MONAI or Ignite handlers.

    Raises:
        ValueError: fewer than one step; no batch in an epoch, since the loader drops an incomplete one.
    """

    def __init__(
        self,
        device: torch.device | str,
        max_epochs: int,
        train_data_loader: Iterable | DataLoader,
        network: nn.Module,
        encoder: nn.Module,
        discriminator: nn.Module,
        code_discriminator: nn.Module,
        optimizer: Optimizer,
        discriminator_optimizer: Optimizer,
        code_optimizer: Optimizer,
        loss_function: AlphaWGANLoss,
        generator_steps: int = 1,
        train_handlers: Sequence | None = None,
    ) -> None:
        if generator_steps < 1:
            raise ValueError(f"generator_steps must be at least 1, got {generator_steps}")
        if isinstance(train_data_loader, DataLoader) and len(train_data_loader) == 0:
            raise ValueError(
                f"expected at least one batch of {train_data_loader.batch_size} training volumes, got "
                f"{len(cast(Sized, train_data_loader.dataset))} volumes: lower --batch_size (2 or more), or give more"
            )
        super().__init__(device, max_epochs, train_data_loader, handlers=train_handlers, decollate=False)
        self.network = network
        self.encoder = encoder
        self.discriminator = discriminator
        self.code_discriminator = code_discriminator
        self.optimizer = optimizer
        self.discriminator_optimizer = discriminator_optimizer
        self.code_optimizer = code_optimizer
        self.loss_function = loss_function
        self.generator_steps = generator_steps

    def _iteration(self, engine: Trainer, batchdata: dict) -> dict[str, Tensor]:
        real = plain_images(batchdata, engine.state.device, self.non_blocking)
        for module in (self.network, self.encoder, self.discriminator, self.code_discriminator):
            module.train()
        for _ in range(self.generator_steps):
            terms, code, reconstruction, drawn = self._step_generator(real)
        terms["loss"] = total(terms.values())
        terms |= self._step_discriminator(real, reconstruction, drawn)
        terms |= self._step_code_discriminator(code)
        return {name: term.detach() for name, term in terms.items()}

    def _step_generator(self, real: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor]:
        """One step of encoder and generator.

        Returns:
            The terms; detached: codes (B, K, 1, 1, 1), reconstructions and drawn volumes (B, C, H, W, D).
        """
        code = self.encoder(real)
        with _statistics_kept(self.network):
            reconstruction = self.network(code)
        drawn = self.network(draw_normal(code.detach()))
        terms = self.loss_function.generator(
            reconstruction,
            real,
            self.discriminator(reconstruction),
            self.discriminator(drawn),
            self.code_discriminator(code),
        )
        self._step(self.optimizer, terms)
        return terms, code.detach(), reconstruction.detach(), drawn.detach()

    def _step_discriminator(self, real: Tensor, reconstruction: Tensor, drawn: Tensor) -> dict[str, Tensor]:
        penalty = self._penalty(self.discriminator, real, drawn) + self._penalty(
            self.discriminator, real, reconstruction
        )
        terms = self.loss_function.discriminator(
            self.discriminator(real), self.discriminator(reconstruction), self.discriminator(drawn), penalty
        )
        self._step(self.discriminator_optimizer, terms)
        return terms

    def _step_code_discriminator(self, code: Tensor) -> dict[str, Tensor]:
        drawn = draw_normal(code)
        terms = self.loss_function.code_discriminator(
            self.code_discriminator(drawn),
            self.code_discriminator(code),
            self._penalty(self.code_discriminator, drawn, code),
        )
        self._step(self.code_optimizer, terms)
        return terms

    @staticmethod
    def _penalty(discriminator: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
        share = draw_integers(2**24, len(real), real.device).to(real.dtype) / 2**24  # uniform in [0, 1)
        return gradient_penalty(discriminator, real, fake, share)

    @staticmethod
    def _step(optimizer: Optimizer, terms: dict[str, Tensor]) -> None:
        optimizer.zero_grad(set_to_none=True)
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        # for its own parameters alone: those of the networks that judge it have steps of their own
        torch.autograd.backward(total(terms.values()), inputs=parameters)
        optimizer.step()


@contextmanager
def _statistics_kept(network: nn.Module) -> Iterator[None]:
    """Within the block, batch norms use the statistics of the batch and leave their running ones alone."""
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum
