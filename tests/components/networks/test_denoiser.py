from __future__ import annotations

import io

import plain_denoiser as plain
import pytest
import torch
import torch.nn.functional as F

from medical_diffusion_components.networks.denoiser import (
    Denoiser,
    InPlaneConv,
    InPlaneUpsample,
    ResidualBlock,
    VolumeNormSiLU,
)
from medical_diffusion_components.networks.embeddings import TimeEmbedding

SMALL = {"base_channels": 8, "channel_multipliers": (1, 2), "num_heads": 2, "head_channels": 6, "norm_groups": 4}


def network(**knobs) -> Denoiser:
    torch.manual_seed(0)
    denoiser = Denoiser(**{**SMALL, **knobs})
    for name, parameter in denoiser.named_parameters():
        if parameter.dim() == 1 and parameter.requires_grad:  # gains and offsets do not stay at one and zero
            torch.nn.init.normal_(parameter, mean=float("gain" in name or "norm" in name), std=0.3)
    return denoiser


def latent(batch=2, depth=3, dtype=torch.float32):
    torch.manual_seed(1)
    return torch.randn(batch, 8, 16, 8, depth, dtype=dtype), torch.tensor([3, 251, 40])[:batch]


def gradients(output, module):
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return torch.autograd.grad(output.square().sum(), parameters)


def folded(x):
    """(B, C, H, W, D) -> (D, B, H, W, C)"""
    return x.permute(4, 0, 2, 3, 1).contiguous()


@pytest.mark.parametrize("base, count", [(16, 3_019_960), (32, 9_981_528), (64, 35_730_328)])
def test_default_network_has_the_expected_number_of_parameters(base, count):
    with torch.device("meta"):
        denoiser = Denoiser(base_channels=base)
    assert sum(parameter.numel() for parameter in denoiser.parameters()) == count


@pytest.mark.parametrize("levels", [(1, 2), (1, 2, 4, 8)])
def test_network_and_its_gradients_equal_plain_3d_form(levels):
    denoiser, (x, t) = network(channel_multipliers=levels).double(), latent(dtype=torch.float64)
    fast, slow = denoiser(x, t), plain.denoiser(denoiser, x, t)
    torch.testing.assert_close(fast, slow)
    for ours, theirs in zip(gradients(fast, denoiser), gradients(slow, denoiser)):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("out_channels, embedding", [(8, 0), (12, 5)])
def test_residual_block_equals_plain_3d_form(out_channels, embedding):
    block = ResidualBlock(8, out_channels, groups=4, embedding_channels=embedding).double()
    x, e = torch.randn(2, 8, 6, 4, 3, dtype=torch.float64), torch.randn(2, embedding, dtype=torch.float64)
    expected = plain.residual_block(block, x, e if embedding else None)
    torch.testing.assert_close(block(folded(x), e), folded(expected))


@pytest.mark.parametrize("kernel, stride", [(3, 1), (7, 1), (4, 2)])
def test_in_plane_convolution_equals_flat_3d_convolution(kernel, stride):
    module = InPlaneConv(3, 5, kernel, stride=stride, padding=(kernel - 1) // 2)
    x = torch.randn(2, 3, 10, 6, 4)
    torch.testing.assert_close(module(folded(x)), folded(plain.conv(module, x)), atol=1e-5, rtol=1e-5)


def test_upsampling_equals_flat_3d_transposed_convolution():
    module, x = InPlaneUpsample(5), torch.randn(2, 5, 6, 4, 3)
    torch.testing.assert_close(module(folded(x)), folded(plain.upsample(module, x)), atol=1e-5, rtol=1e-5)


def test_time_embedding_equals_plain_loops():
    module = TimeEmbedding(10).double()
    timesteps = torch.tensor([0, 7, 299])
    torch.testing.assert_close(module(timesteps), plain.time_embedding(module, timesteps))


def test_norm_runs_over_whole_volumes_and_channel_groups():
    norm, x = VolumeNormSiLU(2, 6), 3 + 2 * torch.randn(2, 6, 5, 4, 3)
    torch.testing.assert_close(norm(folded(x)), folded(F.silu(F.group_norm(x, 2))), atol=1e-5, rtol=1e-5)


def test_norm_is_exact_far_from_zero():
    norm, x = VolumeNormSiLU(2, 6), torch.randn(2, 6, 5, 4, 3)
    torch.testing.assert_close(norm(folded(x + 1000)), norm(folded(x)), atol=1e-3, rtol=1e-3)


def test_gradient_of_norm_equals_finite_differences():
    norm = VolumeNormSiLU(2, 4).double()
    x = torch.randn(3, 2, 2, 1, 4, dtype=torch.float64, requires_grad=True)
    scale, shift = torch.randn(2, 2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(norm, (x, scale, shift))


def test_depth_is_never_reduced_and_each_level_halves_the_plane():
    denoiser, (x, t) = network(channel_multipliers=(1, 2, 2, 2)), latent()
    seen = []
    denoiser.middle.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape)))
    assert denoiser(x, t).shape == x.shape
    assert seen == [(3, 2, 2, 1, 16)]


@pytest.mark.parametrize("order", [(2, 1, 0), (1, 0, 2)])
def test_network_knows_where_a_slice_lies(order):
    denoiser, (x, t) = network(), latent()
    assert (denoiser(x, t)[..., order] - denoiser(x[..., order], t)).abs().max() > 1e-3


def test_prediction_depends_on_the_timestep():
    denoiser, (x, t) = network(), latent()
    assert (denoiser(x, t) - denoiser(x, t + 1)).abs().amax((1, 2, 3, 4)).min() > 1e-4


def test_each_volume_of_a_batch_is_denoised_as_if_alone():
    denoiser, (x, t) = network(), latent(batch=3)
    alone = torch.cat([denoiser(x[i : i + 1], t[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(denoiser(x, t), alone, atol=1e-5, rtol=1e-4)


def test_gradient_reaches_every_trained_parameter():
    denoiser, (x, t) = network(), latent()
    denoiser(x, t).square().sum().backward()
    idle = [n for n, p in denoiser.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert idle == ["position.frequencies"]


def test_rotary_frequencies_can_be_trained():
    denoiser, (x, t) = network(train_rotary_frequencies=True), latent()
    denoiser(x, t).square().sum().backward()
    assert denoiser.position.frequencies.grad.abs().min() > 0


def test_checkpointing_changes_memory_and_not_gradients():
    plain_network, checkpointed, (x, t) = network(), network(use_checkpointing=True), latent()
    saved = {}
    grads = {}
    for name, module in {"plain": plain_network, "checkpointed": checkpointed}.items():
        sizes = saved.setdefault(name, [])
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: (s.append(t.numel()), t)[1], lambda t: t):
            output = module(x, t)
        grads[name] = gradients(output, module)
    for a, b in zip(grads["plain"], grads["checkpointed"]):
        torch.testing.assert_close(a, b)
    assert sum(saved["checkpointed"]) < 0.5 * sum(saved["plain"])


def test_scripted_network_equals_eager_also_after_saving():
    denoiser = network(use_checkpointing=True)
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(denoiser), file)
    file.seek(0)
    scripted = torch.jit.load(file)
    for depth in (3, 3, 3, 5):  # the first calls are profiled, later ones run specialised code
        x, t = latent(depth=depth)
        torch.testing.assert_close(scripted(x, t), denoiser(x, t), atol=1e-5, rtol=1e-4)


def test_scripted_network_has_the_gradients_of_the_eager_one():
    denoiser, (x, t) = network().double(), latent(dtype=torch.float64)
    scripted = torch.jit.script(denoiser)
    for ours, theirs in zip(gradients(scripted(x, t), denoiser), gradients(denoiser(x, t), denoiser)):
        torch.testing.assert_close(ours, theirs)


def test_bfloat16_autocast_stays_close_to_float32():
    denoiser, (x, t) = network(), latent()
    expected = denoiser(x, t)
    with torch.autocast("cpu", torch.bfloat16):
        output = denoiser(x, t)
    assert output.dtype == torch.float32
    assert (output - expected).abs().mean() < 0.02 * expected.abs().mean()
    exact, rough = gradients(expected, denoiser), gradients(output, denoiser)
    cosine = F.cosine_similarity(
        torch.cat([g.flatten() for g in exact]), torch.cat([g.flatten() for g in rough]), dim=0
    )
    assert cosine > 0.99


@pytest.mark.parametrize("compiled", [True, False])
def test_additions_go_to_every_level_and_the_middle_or_are_refused(compiled):
    denoiser, (x, t) = network(), latent()
    call = torch.jit.script(denoiser) if compiled else denoiser
    ones = [torch.ones(3, 2, *size) for size in ((16, 8, 8), (16, 8, 8), (8, 4, 16))]
    middle, plain = ones[-1], call(x, t)
    assert not torch.allclose(call(x, t, mid_block_additional_residual=middle), plain)
    for place in range(3):
        alone = [one * (number == place) for number, one in enumerate(ones)]
        assert not torch.allclose(call(x, t, down_block_additional_residuals=alone), plain)
    for wrong in (ones[:2], [*ones, middle]):
        with pytest.raises(torch.jit.Error if compiled else ValueError, match=f"expected 3 .*, got {len(wrong)}"):
            call(x, t, down_block_additional_residuals=wrong)


@pytest.mark.parametrize("name, compiled", [("context", True), ("context", False), ("class_labels", False)])
def test_conditioning_is_refused(name, compiled):
    denoiser, (x, t) = network(), latent()
    call = torch.jit.script(denoiser) if compiled else denoiser
    with pytest.raises(torch.jit.Error if compiled else ValueError, match="unconditional|no class_labels"):
        call(x, t, **{name: torch.zeros(2, 1, 4)})


@pytest.mark.parametrize("patch_size, message", [
    ((1, 1, 1), r"divisible by \[4, 4, 1\], got \[10, 3, 2\]; .*: \[8, 4, 2\] and \[12, 4, 2\]"),
    ((1, 2, 4), r"divisible by \[4, 8, 4\], got \[10, 3, 2\]; .*: \[8, 8, 4\] and \[12, 8, 4\]"),
])  # fmt: skip
def test_indivisible_size_is_refused_with_the_nearest_sizes(patch_size, message):
    denoiser = network(channel_multipliers=(1, 1, 1), patch_size=patch_size)
    with pytest.raises(ValueError, match=message):
        denoiser(torch.zeros(1, 8, 10, 3, 2), torch.tensor([0]))


def test_patches_are_blocks_of_positions_as_channels():
    denoiser, blocks = network(patch_size=(4, 2, 3)), network(in_channels=8 * 24)
    blocks.load_state_dict(denoiser.state_dict())
    x, t = torch.randn(2, 8, 16, 8, 6), torch.tensor([3, 251])
    as_channels = torch.stack(
        [x[:, :, i::4, j::2, k::3] for i in range(4) for j in range(2) for k in range(3)], dim=2
    ).flatten(1, 2)
    expected = blocks(as_channels, t).unflatten(1, (8, 4, 2, 3))
    output = denoiser(x, t)
    for i, j, k in [(0, 0, 0), (3, 1, 2), (1, 0, 1)]:
        torch.testing.assert_close(output[:, :, i::4, j::2, k::3], expected[:, :, i, j, k])
    torch.testing.assert_close(torch.jit.script(denoiser)(x, t), output)


def test_a_single_timestep_holds_for_all_volumes():
    denoiser, x = network(), torch.randn(2, 8, 8, 8, 2)
    expected = denoiser(x, torch.tensor([7, 7]))
    # the embedding of one timestep is a product of another shape than that of two
    torch.testing.assert_close(denoiser(x, torch.tensor([7])), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("x_shape, t_shape, message", [
    ((1, 4, 8, 8, 2), (1,), r"\(B, 8, H, W, D\), got \[1, 4, 8, 8, 2\]"),
    ((2, 8, 8, 8, 2), (3,), r"one timestep, or one per volume, \(2,\), got \[3\]"),
])  # fmt: skip
def test_input_of_another_shape_is_refused(x_shape, t_shape, message):
    with pytest.raises(ValueError, match=message):
        network()(torch.zeros(x_shape), torch.zeros(t_shape, dtype=torch.int64))


@pytest.mark.parametrize("knobs, message", [
    ({"base_channels": 10}, r"divisible by norm_groups \(4\), got 10"),
    ({"first_kernel": 6}, "odd, got 6"),
    ({"channel_multipliers": ()}, r"positive numbers, got \(\)"),
])  # fmt: skip
def test_impossible_layout_is_refused(knobs, message):
    with pytest.raises(ValueError, match=message):
        network(**knobs)
