from __future__ import annotations

import io

import pytest
import torch
from monai.inferers import LatentDiffusionInferer
from monai.networks.schedulers import DDPMScheduler
from torch import Tensor, nn
from torch.nn import functional as F

from medical_diffusion_components.networks.codebook import EMACodebook
from medical_diffusion_components.networks.denoiser import Denoiser
from medical_diffusion_components.networks.vqgan import (
    VQGAN,
    Decoder,
    Encoder,
    ResidualBlock,
    SameConv3d,
    SameConvTranspose3d,
    check_divisible,
    stage_strides,
)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def small(compression=(2, 4, 1), **settings) -> VQGAN:
    torch.manual_seed(0)
    knobs = {"in_channels": 2, "base_channels": 4, "norm_groups": 4, **settings}
    network = VQGAN(EMACodebook(num_codes=40, dim=3), compression=compression, **knobs)
    with torch.no_grad():  # the codes of a first batch, and of a range that is not symmetric
        network.train()(torch.randn(2, knobs["in_channels"], 8, 12, 6))
    network.codebook.codes += 0.7
    return network.eval()


def image(batch: int = 2) -> Tensor:
    return torch.randn(batch, 2, 4, 8, 6, generator=torch.Generator().manual_seed(5))


# --- counts and sizes ---


@pytest.mark.parametrize(
    "compression, encoder, decoder, to_codes, from_codes",
    [
        ((2, 2, 2), 88_800, 177_473, 264, 288),
        ((4, 4, 4), 441_568, 948_417, 520, 576),
        ((4, 4, 1), 441_568, 948_417, 520, 576),
        ((8, 8, 8), 1_851_616, 4_030_401, 1_032, 1_152),
    ],
)
def test_default_network_has_the_expected_number_of_parameters(compression, encoder, decoder, to_codes, from_codes):
    with torch.device("meta"):
        network = VQGAN(EMACodebook(num_codes=4, dim=8), compression=compression)
    parts = (network.encoder, network.decoder, network.to_codes, network.from_codes)
    assert [count(part) for part in parts] == [encoder, decoder, to_codes, from_codes]
    assert count(network) == encoder + decoder + to_codes + from_codes


@pytest.mark.parametrize(
    "compression, strides",
    [
        ((2, 2, 2), [(2, 2, 2)]),
        ((4, 4, 1), [(2, 2, 1), (2, 2, 1)]),
        ((1, 8, 2), [(1, 2, 2), (1, 2, 1), (1, 2, 1)]),
    ],
)
def test_every_stage_halves_the_axes_that_still_compress(compression, strides):
    assert stage_strides(compression) == strides


@pytest.mark.parametrize("compression", [(3, 2, 2), (2, 2), (0, 2, 2), (1, 1, 1), (-2, 2, 2)])
def test_compression_must_be_three_powers_of_two_of_which_one_compresses(compression):
    with pytest.raises(ValueError, match="compression"):
        stage_strides(compression)


def test_decoder_mirrors_the_strides_of_the_encoder():
    compression = (1, 8, 2)
    down = [m.conv.stride for m in Encoder(1, 4, compression, 4).stages if isinstance(m, SameConv3d)]
    up = [m.conv.stride for m in Decoder(1, 4, compression, 4).stages if isinstance(m, SameConvTranspose3d)]
    assert down == stage_strides(compression) and up == down[::-1]


@pytest.mark.parametrize(
    "compression, latent", [((2, 4, 1), (2, 2, 6)), ((4, 1, 2), (1, 8, 3)), ((2, 2, 2), (2, 4, 3))]
)
def test_latent_has_the_image_size_over_the_compression_and_decodes_to_the_image_size(compression, latent):
    network = small(compression)
    encoded = network.encode(image())
    assert encoded.shape == (2, 3, *latent) == (2, *network.latent_shape((4, 8, 6)))
    assert network.decode(encoded).shape == image().shape


@pytest.mark.parametrize(
    "size, below, above",
    [((5, 8, 6), r"\(4, 8, 6\)", r"\(6, 8, 6\)"), ((4, 3, 1), r"\(4, 4, 1\)", r"\(4, 4, 1\)")],
)
def test_a_size_that_does_not_divide_is_an_error_naming_the_nearest_sizes(size, below, above):
    with pytest.raises(ValueError, match=rf"nearest that are: {below} and {above}"):
        small()(torch.zeros(1, 2, *size))
    with pytest.raises(ValueError, match=below):
        small().latent_shape(size)


def test_nearest_sizes_are_positive_multiples():
    with pytest.raises(ValueError, match=r"\(4, 8\) and \(4, 12\)"):
        check_divisible((0, 11), (4, 4))


@pytest.mark.parametrize("shape", [(1, 1, 4, 8, 6), (2, 4, 8, 6)])
def test_an_image_of_other_channels_or_axes_is_an_error(shape):
    with pytest.raises(ValueError, match=r"expected an image \(B, 2, H, W, D\), got shape"):
        small().encode(torch.zeros(shape))


def test_norm_groups_must_divide_the_narrowest_normalised_width():
    with pytest.raises(ValueError, match="32 does not divide 24"):
        VQGAN(EMACodebook(4, 3), base_channels=12)


# --- layers ---


@pytest.mark.parametrize("stride, front, back", [((2, 2, 2), (1, 1, 1), (1, 1, 1)), ((2, 1, 2), (1, 2, 1), (1, 1, 1))])
def test_same_convolution_repeats_the_edge_with_the_odd_voxel_in_front(stride, front, back):
    layer, x = SameConv3d(2, 3, 4, stride).double(), torch.randn(1, 2, 4, 5, 6, dtype=torch.float64)
    rows = [torch.arange(-f, n + b).clamp(0, n - 1) for n, f, b in zip(x.shape[2:], front, back)]
    padded = x[:, :, rows[0]][:, :, :, rows[1]][..., rows[2]]
    expected = F.conv3d(padded, layer.conv.weight, layer.conv.bias, stride)
    torch.testing.assert_close(layer(x), expected)


def test_transposed_convolution_is_a_sum_of_kernels_over_the_repeated_edge():
    layer, x = SameConvTranspose3d(1, 1, 4, (2, 1, 1)).double(), torch.randn(1, 1, 3, 2, 2, dtype=torch.float64)
    weight = layer.conv.weight[0, 0]
    expected = torch.full((6, 2, 2), layer.conv.bias.item(), dtype=torch.float64)
    # along H (stride 2) one voxel more on each side, along W and D (stride 1) two in front and one behind
    for i in range(-1, 4):
        for j in range(-2, 3):
            for k in range(-2, 3):
                value = x[0, 0, min(max(i, 0), 2), min(max(j, 0), 1), min(max(k, 0), 1)]
                for a, b, c in torch.cartesian_prod(*[torch.arange(4)] * 3).tolist():
                    place = (2 * (i + 1) + a - 3, j + 2 + b - 3, k + 2 + c - 3)
                    if all(0 <= p < n for p, n in zip(place, expected.shape)):
                        expected[place] += value * weight[a, b, c]
    torch.testing.assert_close(layer(x)[0, 0], expected)


def test_residual_block_without_its_last_convolution_is_the_identity():
    block, x = ResidualBlock(8, 2), torch.randn(1, 8, 3, 4, 5)
    nn.init.zeros_(block.conv2.conv.weight), nn.init.zeros_(block.conv2.conv.bias)
    assert torch.equal(block(x), x)


def test_residual_block_equals_its_formula():
    block, x = ResidualBlock(8, 2).double(), torch.randn(2, 8, 3, 4, 5, dtype=torch.float64)

    def half(x: Tensor, norm: nn.GroupNorm, conv: SameConv3d) -> Tensor:
        groups = x.reshape(2, 2, -1)
        normed = (groups - groups.mean(-1, True)) / (groups.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
        normed = normed.reshape(x.shape)
        padded = F.pad(normed * normed.sigmoid(), [1] * 6, mode="replicate")
        return F.conv3d(padded, conv.conv.weight, conv.conv.bias)

    expected = x + half(half(x, block.norm1, block.conv1), block.norm2, block.conv2)
    torch.testing.assert_close(block(x), expected)


# --- the first stage as others use it ---


def test_stage_2_latent_is_the_encoding_scaled_by_the_range_of_the_codes():
    network = small()
    codes, encoded = network.codebook.codes, network.encode(image())
    scaled = network.encode_stage_2_inputs(image())
    torch.testing.assert_close((scaled + 1) / 2 * (codes.max() - codes.min()) + codes.min(), encoded)
    assert abs(codes.min() + codes.max()) > 0.1  # a range about zero would hide a missing offset


def test_decoding_the_stage_2_latent_gives_the_reconstruction():
    network = small()
    decoded = network.decode_stage_2_outputs(network.encode_stage_2_inputs(image()))
    torch.testing.assert_close(decoded, network.reconstruct(image()))


def test_reconstruction_decodes_nearest_codes_and_leaves_the_codebook_alone():
    network = small().train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    reconstruction = network.reconstruct(image())
    encoded = network.encode(image()).movedim(1, -1)  # (B, h, w, d, C)
    nearest = torch.cdist(encoded.reshape(-1, 3).double(), network.codebook.codes.double()).argmin(1)
    quantised = network.codebook.codes[nearest].view(encoded.shape).movedim(-1, 1)
    torch.testing.assert_close(reconstruction, network.decode(quantised).clamp(-1, 1))
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_forward_gives_the_reconstruction_and_only_in_training_moves_the_codes():
    network = small()
    codes = network.codebook.codes.clone()
    torch.testing.assert_close(network(image()).reconstruction.clamp(-1, 1), network.reconstruct(image()))
    assert torch.equal(codes, network.codebook.codes)
    network.train()(image())
    assert not torch.equal(codes, network.codebook.codes)


def test_what_leaves_the_network_is_within_the_range_of_images_but_training_sees_all():
    network = small()
    with torch.no_grad():
        network.decoder.conv_out.conv.weight *= 20
    latent = network.encode_stage_2_inputs(image())
    for volume in (network.reconstruct(image()), network.decode_stage_2_outputs(latent)):
        assert volume.min() == -1 and volume.max() == 1
    assert network(image()).reconstruction.abs().max() > 1.5  # no gradient would come from a clipped voxel


def test_gradient_of_the_reconstruction_reaches_the_encoder_through_the_codes():
    network = small()
    network(image()).reconstruction.square().mean().backward()
    assert all(p.grad.abs().sum() > 0 for p in network.encoder.parameters())


def test_latent_diffusion_inferer_of_monai_trains_and_samples_with_it():
    network, scheduler = small(compression=(1, 2, 2)), DDPMScheduler(5, schedule="cosine")
    knobs = {"channel_multipliers": (1,), "num_heads": 1, "head_channels": 4, "norm_groups": 2}
    denoiser, inferer = Denoiser(3, base_channels=4, **knobs).eval(), LatentDiffusionInferer(scheduler)
    noise, timesteps = torch.randn(2, *network.latent_shape((4, 8, 6))), torch.tensor([0, 4])
    predicted = inferer(image(), network, denoiser, noise, timesteps)
    noised = scheduler.add_noise(network.encode_stage_2_inputs(image()), noise, timesteps)
    torch.testing.assert_close(predicted, denoiser(noised, timesteps))

    scheduler.set_timesteps(5)
    torch.manual_seed(3)
    sample = inferer.sample(noise, network, denoiser, scheduler, verbose=False)
    torch.manual_seed(3)
    latent = noise
    for t in scheduler.timesteps:
        latent, _ = scheduler.step(denoiser(latent, t.expand(2)), t, latent)
    torch.testing.assert_close(sample, network.decode_stage_2_outputs(latent))


def test_scripted_network_equals_the_eager_one():
    network, buffer = small(), io.BytesIO()
    torch.jit.save(torch.jit.script(network), buffer)
    buffer.seek(0)
    scripted, latent = torch.jit.load(buffer), torch.rand(1, 3, 2, 2, 6) * 2 - 1
    for method in ("encode", "reconstruct", "encode_stage_2_inputs"):
        torch.testing.assert_close(getattr(scripted, method)(image()), getattr(network, method)(image()))
    for method in ("decode", "decode_stage_2_outputs"):
        torch.testing.assert_close(getattr(scripted, method)(latent), getattr(network, method)(latent))
