from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from medical_diffusion_components.networks.discriminators import PatchDiscriminator


@pytest.mark.parametrize("spatial_dims, count", [(2, 2_764_481), (3, 11_049_665)])
def test_default_discriminator_has_the_expected_number_of_parameters(spatial_dims, count):
    with torch.device("meta"):
        discriminator = PatchDiscriminator(spatial_dims)
    assert sum(parameter.numel() for parameter in discriminator.parameters()) == count


def test_features_are_those_of_four_convolutions_and_logits_those_of_one_more():
    discriminator = PatchDiscriminator(2, channels=3).double()
    convolutions = [m for m in discriminator.modules() if isinstance(m, torch.nn.Conv2d)]
    norms = [None, *(m for m in discriminator.modules() if isinstance(m, torch.nn.BatchNorm2d))]
    x = h = torch.randn(2, 1, 17, 22, dtype=torch.float64)
    expected = []
    for conv, norm, stride in zip(convolutions, norms, (2, 2, 2, 1)):
        h = F.conv2d(F.pad(h, [2, 2, 2, 2]), conv.weight, conv.bias, stride)
        if norm is not None:
            spread = h.var((0, 2, 3), correction=0, keepdim=True)
            h = (h - h.mean((0, 2, 3), keepdim=True)) / (spread + 1e-5).sqrt()
            h = h * norm.weight[:, None, None] + norm.bias[:, None, None]
        h = torch.where(h > 0, h, 0.2 * h)
        expected.append(h)
    verdict = discriminator(x)
    assert [feature.shape[1] for feature in verdict.features] == [3, 6, 12, 24]
    for ours, theirs in zip(verdict.features, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    logits = F.conv2d(F.pad(h, [2, 2, 2, 2]), convolutions[4].weight, convolutions[4].bias)
    torch.testing.assert_close(verdict.logits, logits)


@pytest.mark.parametrize("shape", [(8, 8), (8, 9, 8)])
def test_padding_lets_inputs_of_8_voxels_through(shape):
    discriminator = PatchDiscriminator(len(shape), in_channels=2, channels=4)
    verdict = discriminator(torch.randn(2, 2, *shape))
    assert verdict.logits.shape == (2, 1, *[4] * len(shape)) and verdict.logits.std() > 0


def test_number_of_layers_sets_the_number_of_features():
    assert len(PatchDiscriminator(2, channels=2, num_layers=2)(torch.randn(2, 1, 16, 16)).features) == 3


@pytest.mark.parametrize("shape, dtype", [((18, 23), torch.bfloat16), ((24, 17), torch.float32)])
def test_maps_smaller_than_a_kernel_are_seen_in_float32_under_autocast(shape, dtype):
    discriminator, x = PatchDiscriminator(2, channels=2), torch.randn(2, 1, *shape)
    with torch.autocast("cpu", torch.bfloat16):
        verdict = discriminator(x)
    assert {feature.dtype for feature in (*verdict.features, verdict.logits)} == {dtype}


def test_weight_gradients_of_small_inputs_are_those_of_float32_under_autocast():
    discriminator, x = PatchDiscriminator(3, channels=2), torch.randn(2, 1, 8, 12, 9)
    found = []
    for enabled in (True, False):
        junk = [torch.full((n,), torch.nan) for n in range(1, 20_000, 50)]  # what unwritten memory would hold
        del junk
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = discriminator(x).logits.float().square().sum()
        found.append(torch.autograd.grad(loss, list(discriminator.parameters())))
    torch.testing.assert_close(*found)


def test_logits_of_64_voxels_are_11_a_side_so_that_the_border_counts():
    discriminator = PatchDiscriminator(3, channels=2)
    assert discriminator(torch.randn(1, 1, 64, 64, 64)).logits.shape == (1, 1, 11, 11, 11)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_weights_start_as_those_of_plain_layers_do(spatial_dims):
    """Uniform within 1 / sqrt(inputs) of a position, batch norms at 1 and 0."""
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(spatial_dims, channels=16)
    for part in discriminator.modules():
        if isinstance(part, torch.nn.Conv2d | torch.nn.Conv3d):
            bound = part.weight[0].numel() ** -0.5
            assert 0.85 * bound < part.weight.abs().max() <= bound and part.bias.abs().max() <= bound
            assert part.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
        if isinstance(part, torch.nn.BatchNorm2d | torch.nn.BatchNorm3d):
            assert (part.weight == 1).all() and (part.bias == 0).all()
