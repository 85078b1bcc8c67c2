"""The first stage in its plainest form: what `first_stage.py` and the tests compare the fast one with.

Networks run in the plain form that ``networks.fast`` switches to: PyTorch's own group norm, SiLU and padding, each
operation by itself, in the memory layout of their weights; the codebook makes the whole distance matrix and the one-hot
matrix; the generator's step and the discriminators' step each run encoder, codebook, decoder and both discriminators. The
mathematics, weights and random draws are those of the package, so that one step of either leaves the same weights.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medical_diffusion_components.engines.vqgan_trainer import VQGANTrainer
from medical_diffusion_components.losses.slices import random_slices
from medical_diffusion_components.losses.vqgan import DiscriminatorPair
from medical_diffusion_components.networks import fast
from medical_diffusion_components.networks.codebook import EMACodebook


class PlainCodebook(EMACodebook):
    """The codebook by a distance matrix (N, K) and a one-hot matrix (N, K)."""

    def _nearest_rows(self, latents: Tensor) -> Tensor:
        squares = latents.square().sum(1, keepdim=True) + self.codes.square().sum(1)  # (N, K)
        return (squares - 2 * latents @ self.codes.t()).argmin(1)

    def embed(self, indices: Tensor) -> Tensor:
        return F.embedding(indices, self.codes).movedim(-1, 1)

    def _sums_per_code(self, latents: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        one_hot = self._one_hot(rows)
        return one_hot.sum(0), one_hot.t() @ latents

    def _one_hot(self, rows: Tensor) -> Tensor:
        return F.one_hot(rows, self.num_codes).to(self.codes.dtype)


def plain_step(parts: VQGANTrainer, real: Tensor) -> dict[str, Tensor]:
    """One batch of ``parts``, whose loop is not used: the generator's step, then the discriminators'.

    The second run is that of the weights, codes and slices of the first, as the trainer's single run has them.

    Args:
        parts: networks, optimisers and losses; the adversarial terms count in full.
        real: images (B, C, H, W, D) in [-1, 1].
    """
    with fast.use(False):
        return _plain_step(parts, real)


def _plain_step(parts: VQGANTrainer, real: Tensor) -> dict[str, Tensor]:
    network, loss = parts.network.train(), parts.loss_function
    codes = {name: value.clone() for name, value in network.codebook.state_dict().items()}

    def discriminate(slices: Tensor, volumes: Tensor) -> DiscriminatorPair:
        return DiscriminatorPair(parts.slice_discriminator.train()(slices), parts.volume_discriminator.train()(volumes))

    fake, coded = network(real)
    random_state = torch.get_rng_state()
    fake_slice, real_slice = random_slices(fake, real)
    terms = loss.reconstruction(fake, real, fake_slice, real_slice) | {"commitment": coded.commitment_loss}
    terms |= loss.adversarial(discriminate(fake_slice, fake), discriminate(real_slice, real))
    parts.optimizer.zero_grad(set_to_none=True)
    sum(terms.values()).backward()
    del coded, fake, fake_slice

    learned = {name: value.clone() for name, value in network.codebook.state_dict().items()}
    if bool(codes["initialised"]):  # else the first run has just made them
        network.codebook.load_state_dict(codes)
    with torch.no_grad():
        network.codebook.eval()
        fake = network(real).reconstruction
    network.codebook.train().load_state_dict(learned)
    torch.set_rng_state(random_state)
    fake_slice, real_slice = random_slices(fake, real)
    discriminator_terms = loss.discriminators(discriminate(fake_slice, fake), discriminate(real_slice, real))
    parts.discriminator_optimizer.zero_grad(set_to_none=True)
    sum(discriminator_terms.values()).backward()

    for optimizer, modules in (
        (parts.optimizer, network),
        (parts.discriminator_optimizer, nn.ModuleList([parts.slice_discriminator, parts.volume_discriminator])),
    ):
        nn.utils.clip_grad_norm_(modules.parameters(), parts.gradient_clip)
        optimizer.step()
    return {name: value.detach() for name, value in (terms | discriminator_terms).items()}
