from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from medical_diffusion_components.networks import (
    AlphaWGANGenerator,
    CodeDiscriminator,
    VolumeDiscriminator,
    VolumeEncoder,
)
from medical_diffusion_components.networks.alpha_wgan import EnlargingConv3d

SIZE = (16, 48, 32)


def millions(module: nn.Module) -> float:
    return round(sum(parameter.numel() for parameter in module.parameters()) / 1e6, 2)


def test_networks_have_the_published_sizes() -> None:
    size = (64, 64, 64)
    assert millions(AlphaWGANGenerator(size)) == 37.42
    assert millions(VolumeEncoder(size)) == 43.79
    assert millions(VolumeDiscriminator(size, norm="batch")) == 11.05
    assert millions(CodeDiscriminator(norm="batch")) == 20.90


def test_a_code_becomes_a_volume_and_a_volume_a_code() -> None:
    generator, encoder = AlphaWGANGenerator(SIZE, 6, 2, 3), VolumeEncoder(SIZE, 6, 4, 3)
    volume = generator(torch.randn(2, 6, 1, 1, 1))
    assert volume.shape == (2, 3, *SIZE) and volume.abs().max() <= 1
    assert encoder(volume).shape == (2, 6, 1, 1, 1)
    assert VolumeDiscriminator(SIZE, 4, 3)(volume).shape == CodeDiscriminator(6, 16)(encoder(volume)).shape == (2,)


def test_the_generator_ends_with_a_convolution_and_tanh_and_norms_before_every_enlargement() -> None:
    kinds = [type(layer).__name__ for layer in AlphaWGANGenerator(SIZE, 6, 2).layers]
    stage = ["BatchNorm3d", "ReLU", "EnlargingConv3d"]
    assert kinds == ["ConvTranspose3d", *stage * 4, "Tanh"]


def test_enlarging_and_convolving_at_once_equals_one_after_the_other_and_so_do_the_gradients() -> None:
    layer, volume = EnlargingConv3d(3, 2).double(), torch.randn(2, 3, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    expected = F.conv3d(F.interpolate(volume, scale_factor=2.0), layer.weight, padding=1)
    assert layer(volume).shape == (2, 2, 4, 6, 8)
    torch.testing.assert_close(layer(volume), expected)
    weights = torch.randn_like(expected)
    ours, theirs = (torch.autograd.grad((y * weights).sum(), (volume, layer.weight)) for y in (layer(volume), expected))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("network", [VolumeDiscriminator(SIZE, 8), CodeDiscriminator(6, 16)])
def test_with_group_norm_a_verdict_does_not_depend_on_the_batch(network: nn.Module) -> None:
    x = torch.randn(3, 1, *SIZE) if isinstance(network, VolumeDiscriminator) else torch.randn(3, 6, 1, 1, 1)
    together, alone = network.train()(x), torch.cat([network(one) for one in x.split(1)])
    torch.testing.assert_close(together, alone)


def test_with_batch_norm_it_does() -> None:
    network, x = CodeDiscriminator(6, 16, norm="batch").train(), torch.randn(3, 6, 1, 1, 1)
    assert not torch.allclose(network(x)[:2], network(x[:2]), atol=1e-3)


def test_the_scripted_generator_equals_the_eager_one() -> None:
    generator, code = AlphaWGANGenerator(SIZE, 6, 2).eval(), torch.randn(2, 6, 1, 1, 1)
    torch.testing.assert_close(torch.jit.script(generator)(code), generator(code))


@pytest.mark.parametrize("size", [(16, 48, 30), (16, 48), (8, 16, 16)])
def test_sides_that_cannot_be_halved_four_times_are_refused(size: tuple[int, ...]) -> None:
    for network in (AlphaWGANGenerator, VolumeEncoder):
        with pytest.raises(ValueError, match="must be three multiples of 16"):
            network(size)


def test_another_norm_is_refused() -> None:
    with pytest.raises(ValueError, match="norm must be one of batch, group; got 'layer'"):
        CodeDiscriminator(norm="layer")
