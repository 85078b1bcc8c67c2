from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medical_diffusion_components.networks.fast.norm_silu import NormSiLU, group_moments, norm_silu_conv

# padding in front and behind along D, W, H; the last two as a 4^3 kernel with stride 1 or 2 has them
PADS = [(1, 1, 1, 1, 1, 1), (0, 2, 1, 0, 2, 1), (2, 1, 1, 1, 2, 1)]


def volume(dtype=torch.float64, shape=(2, 6, 3, 4, 5)) -> Tensor:
    torch.manual_seed(1)
    return (3 + 2 * torch.randn(shape, dtype=dtype)).requires_grad_()


def layers(kernel=3, stride=(1, 1, 1), bias=True, dtype=torch.float64) -> tuple[NormSiLU, nn.Conv3d]:
    torch.manual_seed(0)
    norm, conv = NormSiLU(3, 6, eps=1e-6), nn.Conv3d(6, 5, kernel, stride=stride, bias=bias)
    nn.init.normal_(norm.weight, mean=1.0, std=0.3), nn.init.normal_(norm.bias, std=0.3)
    return norm.to(dtype), conv.to(dtype)


def plain(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    """Group norm and SiLU from their definitions."""
    groups = x.reshape(x.shape[0], norm.num_groups, -1)
    deviation = groups - groups.mean(-1, keepdim=True)
    normed = deviation / (deviation.square().mean(-1, keepdim=True) + norm.eps).sqrt()
    channels = normed.view_as(x).movedim(1, -1) * norm.weight + norm.bias
    return (channels * torch.sigmoid(channels)).movedim(-1, 1)


def plain_conv(x: Tensor, norm: nn.GroupNorm, conv: nn.Conv3d, pads) -> Tensor:
    activated = plain(x, norm)
    for axis, (front, back) in zip((4, 3, 2), zip(pads[::2], pads[1::2])):
        size = activated.shape[axis]
        activated = activated.index_select(axis, torch.arange(-front, size + back).clamp(0, size - 1))
    return F.conv3d(activated, conv.weight, conv.bias, conv.stride)


def gradients(output: Tensor, x: Tensor, *modules: nn.Module) -> list[Tensor]:
    weights = torch.linspace(-1, 2, output.numel(), dtype=torch.float64).to(output.dtype).view_as(output)
    return torch.autograd.grad((output * weights).sum(), [x, *(p for m in modules for p in m.parameters())])


def test_norm_and_its_gradients_equal_their_definition():
    x, (norm, _) = volume(), layers()
    fast, slow = norm(x), plain(x, norm)
    torch.testing.assert_close(fast, slow)
    torch.testing.assert_close(gradients(fast, x, norm), gradients(slow, x, norm))


@pytest.mark.parametrize("pads", PADS)
@pytest.mark.parametrize("kernel, stride, bias", [(3, (1, 1, 1), True), (2, (2, 1, 2), False)])
def test_convolution_and_its_gradients_equal_their_definition(pads, kernel, stride, bias):
    x, (norm, conv) = volume(), layers(kernel, stride, bias)
    fast, slow = norm_silu_conv(x, norm, conv, pads), plain_conv(x, norm, conv, pads)
    torch.testing.assert_close(fast, slow)
    torch.testing.assert_close(gradients(fast, x, norm, conv), gradients(slow, x, norm, conv))


def test_gradients_equal_finite_differences():
    x, (norm, conv) = volume(shape=(2, 6, 2, 1, 3)), layers()
    parameters = [norm.weight, norm.bias, conv.weight, conv.bias]
    assert torch.autograd.gradcheck(lambda *_: norm(x), (x, norm.weight, norm.bias))
    assert torch.autograd.gradcheck(lambda *_: norm_silu_conv(x, norm, conv, PADS[0]), (x, *parameters))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
def test_layout_of_the_input_does_not_matter_and_channels_are_last_in_the_output(memory_format):
    x, (norm, conv) = volume(), layers()
    laid_out = x.detach().contiguous(memory_format=memory_format)
    strided = torch.stack((laid_out, laid_out), -1)[..., 1]
    for given in (laid_out, strided):
        for output, expected in (
            (norm(given), plain(x, norm)),
            (norm_silu_conv(given, norm, conv, PADS[0]), plain_conv(x, norm, conv, PADS[0])),
        ):
            torch.testing.assert_close(output, expected)
    norm, conv, laid_out = norm.float(), conv.float(), laid_out.float()  # PyTorch's float64 convolution keeps no layout
    for output in (norm(laid_out), norm_silu_conv(laid_out, norm, conv, PADS[0])):
        assert output.is_contiguous(memory_format=torch.channels_last_3d)


def test_gradient_in_any_layout_is_taken():
    x, (norm, conv) = volume(), layers()
    for function in (norm, lambda x: norm_silu_conv(x, norm, conv, PADS[0])):
        output = function(x)
        same = torch.autograd.grad(output, x, output.detach().contiguous(), retain_graph=True)
        moved = torch.autograd.grad(output, x, output.detach().contiguous(memory_format=torch.channels_last_3d))
        torch.testing.assert_close(same, moved)


def test_only_the_input_is_kept_for_the_backward_pass():
    x, (norm, conv) = volume(torch.float32, (2, 6, 8, 9, 10)), layers(dtype=torch.float32)
    x = x.detach().contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    kept: dict[int, int] = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.update({t.data_ptr(): t.numel()}) or t, lambda t: t):
        norm_silu_conv(norm_silu_conv(x, norm, conv, PADS[0])[:, [0, 1, 2, 3, 4, 0]], norm, conv, PADS[0])
    assert x.data_ptr() in kept
    assert sum(n >= x.numel() for n in kept.values()) == 2  # one for each of the two


@pytest.mark.parametrize("frozen", ["input", "norm", "conv"])
def test_what_needs_no_gradient_gets_none_and_the_rest_the_same(frozen):
    x, (norm, conv) = volume(), layers()
    expected = gradients(plain_conv(x, norm, conv, PADS[0]), x, norm, conv)
    for tensor in {"input": [x], "norm": norm.parameters(), "conv": conv.parameters()}[frozen]:
        tensor.requires_grad_(False)
    output = norm_silu_conv(x, norm, conv, PADS[0])
    weights = torch.linspace(-1, 2, output.numel(), dtype=torch.float64).view_as(output)
    (output * weights).sum().backward()
    for tensor, gradient in zip([x, *norm.parameters(), *conv.parameters()], expected):
        torch.testing.assert_close(tensor.grad, gradient if tensor.requires_grad else None)


def test_moments_are_exact_far_from_zero_with_and_without_scratch():
    x = torch.randn(2, 3, 50, 6, generator=torch.Generator().manual_seed(4))
    wide = x.double().transpose(0, 1).reshape(3, 2, -1, 2, 3).permute(0, 3, 1, 2, 4).reshape(3, 2, -1)
    expected = (wide.var(-1, correction=0) + 1e-6).rsqrt().float()
    for scratch in (None, torch.empty_like(x)):
        mean, rstd = group_moments(x + 1000, 2, 1e-6, scratch)
        torch.testing.assert_close(rstd[:, 0, ::3], expected, rtol=1e-3, atol=0)
        torch.testing.assert_close(mean[:, 0, ::3], (wide.mean(-1) + 1000).float())


@pytest.mark.parametrize("fused", [True, False])
def test_bfloat16_autocast_stays_close_to_float64(fused):
    x, (norm, conv) = volume(), layers()
    expected = plain_conv(x, norm, conv, PADS[0]) if fused else plain(x, norm)
    exact = torch.cat([g.flatten() for g in gradients(expected, x, norm, *([conv] if fused else []))])
    norm, conv, x = norm.float(), conv.float(), x.detach().float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        output = norm_silu_conv(x, norm, conv, PADS[0]) if fused else norm(x.bfloat16())
    assert output.dtype == torch.bfloat16
    assert (output - expected).abs().mean() < 0.02 * expected.abs().mean()
    rough = gradients(output, x, norm, *([conv] if fused else []))
    assert all(g.dtype == torch.float32 for g in rough)
    assert F.cosine_similarity(torch.cat([g.flatten() for g in rough]).double(), exact, dim=0) > 0.999


def test_scripted_norm_equals_the_eager_one():
    x, (norm, _) = volume(), layers()
    torch.testing.assert_close(torch.jit.script(norm)(x), norm(x))
