"""The first stage in its plainest form: what `first_stage.py` and the tests compare the fast one with.

Networks run on ``(B, C, H, W, D)`` in PyTorch's default layout with its own group norm, SiLU and padding, each
operation by itself; the codebook makes the whole distance matrix and the one-hot matrix; the generator's step and the
discriminators' step each run encoder, codebook, decoder and both discriminators. The mathematics, weights and random
draws are those of the package, so that one step of either leaves the same weights.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medical_diffusion_components.engines.vqgan_trainer import VQGANTrainer
from medical_diffusion_components.losses.slices import random_slices
from medical_diffusion_components.losses.vqgan import DiscriminatorPair
from medical_diffusion_components.networks.codebook import EMACodebook
from medical_diffusion_components.networks.vqgan import VQGAN, ResidualBlock, SameConv3d, SameConvTranspose3d


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


def norm_silu(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    return F.silu(F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps))


def conv(module: SameConv3d, x: Tensor) -> Tensor:
    x = F.pad(x, module.pads, mode="replicate")
    return F.conv3d(x, module.conv.weight, module.conv.bias, module.conv.stride)


def layer(module: nn.Module, x: Tensor) -> Tensor:
    """One entry of the stages of encoder or decoder."""
    if isinstance(module, ResidualBlock):
        h = conv(module.conv1, norm_silu(module.norm1, x))
        return x + conv(module.conv2, norm_silu(module.norm2, h))
    if isinstance(module, SameConvTranspose3d):
        x, inner = F.pad(x, module.pads, mode="replicate"), module.conv
        return F.conv_transpose3d(x, inner.weight, inner.bias, inner.stride, inner.padding)
    return conv(module, x)


def encode(network: VQGAN, image: Tensor) -> Tensor:
    h = conv(network.encoder.conv_in, image)
    for module in network.encoder.stages:
        h = layer(module, h)
    return F.conv3d(norm_silu(network.encoder.norm_out, h), network.to_codes.weight, network.to_codes.bias)


def decode(network: VQGAN, quantised: Tensor) -> Tensor:
    h = norm_silu(network.decoder.norm_in, F.conv3d(quantised, network.from_codes.weight, network.from_codes.bias))
    for module in network.decoder.stages:
        h = layer(module, h)
    return conv(network.decoder.conv_out, h)


def plain_step(parts: VQGANTrainer, real: Tensor) -> dict[str, Tensor]:
    """One batch of ``parts``, whose loop is not used: the generator's step, then the discriminators'.

    The second run is that of the weights, codes and slices of the first, as the trainer's single run has them.

    Args:
        parts: networks, optimisers and losses; the adversarial terms count in full.
        real: images (B, C, H, W, D) in [-1, 1].
    """
    network, loss = parts.network.train(), parts.loss_function
    codes = {name: value.clone() for name, value in network.codebook.state_dict().items()}

    def discriminate(slices: Tensor, volumes: Tensor) -> DiscriminatorPair:
        return DiscriminatorPair(parts.slice_discriminator.train()(slices), parts.volume_discriminator.train()(volumes))

    coded = network.codebook(encode(network, real))
    fake = decode(network, coded.quantised)
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
        fake = decode(network, network.codebook(encode(network, real)).quantised)
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
