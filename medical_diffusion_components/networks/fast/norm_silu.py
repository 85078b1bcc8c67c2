"""Group norm and SiLU in one pass, alone or together with the padded convolution behind them.

Wu and He, "Group normalization", ECCV 2018; Hendrycks and Gimpel, "Gaussian error linear units", 2016, for SiLU. The
result is that of ``torch.nn.functional``; the computation differs in two ways. Activations are read with their
channels last: convolutions are fast in that layout, PyTorch's own group norm is slow in it or copies. And only the input
is kept for the backward pass, as in Chen et al., "Training deep nets with sublinear memory cost", 2016: normalised,
activated and padded volumes are cheap to compute again, and each of them is as large as the input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from medical_diffusion_components.networks.fast import in_use

__all__ = ["NormModulateSiLU", "NormSiLU", "group_moments", "norm_silu_conv"]


def group_moments(x: Tensor, groups: int, eps: float, scratch: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean and reciprocal standard deviation of each channel's group, at least float32.

    Sums run over one axis after the other and deviations are taken from each channel's own mean: as exact as a two-pass
    variance, and many times faster than ``var_mean`` over these axes.

    Args:
        x: activations; the statistics run over S, P and the channels of a group.
        groups: number of channel groups, a divisor of C.
        eps: added to the variance.
        scratch: memory like ``x`` to write over. Fresh memory for it would cost more than the arithmetic.

    Shape:
        ``(S, B, P, C)`` -> twice ``(B, 1, C)``
    """
    _, batch, positions, channels = x.shape
    dtype = torch.promote_types(x.dtype, torch.float32)
    mean = x.sum(2, dtype=dtype).mean(0) / positions  # (B, C)
    if scratch is None:
        deviation = x - mean[:, None]
    else:
        deviation = torch.sub(x, mean[:, None], out=scratch)
    mean_square = deviation.square_().sum(2, dtype=dtype).mean(0) / positions
    mean = mean.view(batch, groups, -1)
    group_mean = mean.mean(2, keepdim=True)
    # Variance within the channels plus variance between them.
    variance = mean_square.view(batch, groups, -1).mean(2, keepdim=True)
    variance = variance + (mean - group_mean).square().mean(2, keepdim=True)
    rstd = (variance + eps).rsqrt()
    return group_mean.expand_as(mean).reshape(batch, 1, channels), rstd.expand_as(mean).reshape(batch, 1, channels)


def _affine(x: Tensor, slope: Tensor, intercept: Tensor, out: Tensor) -> Tensor:
    """``x * slope + intercept`` into ``out``, in its data type; the arithmetic is that of the widest operand."""
    return torch.addcmul(intercept, x, slope, out=out)


def _norm_backward(
    grad: Tensor, x: Tensor, gain: Tensor, mean: Tensor, rstd: Tensor, slope: Tensor, groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``x``, gain and offset from that of the modulated norm, which is written over.

    Gradients are summed per channel before anything is spread over the volume again.
    """
    depth, batch, positions, channels = x.shape
    grad_offset = grad.sum(2, keepdim=True, dtype=mean.dtype).sum(0)  # (B, 1, C)
    scratch = grad * x
    grad_gain = rstd * (scratch.sum(2, keepdim=True, dtype=mean.dtype).sum(0) - mean * grad_offset)

    def group_mean(t: Tensor) -> Tensor:
        t = t.view(batch, groups, -1)
        return (t.mean(2, keepdim=True) / (depth * positions)).expand_as(t).reshape(batch, 1, channels)

    along = -rstd.square() * group_mean(gain * grad_gain)
    constant = -rstd * group_mean(gain * grad_offset) - along * mean
    grad = _affine(grad, slope, _affine(x, along, constant, out=scratch), out=grad)
    return grad, grad_gain, grad_offset


def _silu_backward(grad: Tensor, activated: Tensor) -> Tensor:
    """Gradient of the input of SiLU, which is written over."""
    return torch.ops.aten.silu_backward.grad_input(grad, activated, grad_input=activated)


class NormModulateSiLU(torch.autograd.Function):
    """``silu(normalised(x) * gain + offset)`` with a hand-written backward pass that needs only ``x``.

    Shape:
        ``x (S, B, P, C)`` contiguous, ``gain`` and ``offset`` ``(B, 1, C)`` -> ``(S, B, P, C)``
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, offset: Tensor, groups: int, eps: float) -> Tensor:
        y = torch.empty_like(x)
        mean, rstd = group_moments(x, groups, eps, scratch=y)
        slope = rstd * gain
        intercept = offset - mean * slope
        ctx.save_for_backward(x, gain, mean, rstd, slope, intercept)
        ctx.groups = groups
        return F.silu(_affine(x, slope, intercept, out=y), inplace=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, mean, rstd, slope, intercept = ctx.saved_tensors
        grad = _silu_backward(grad, _affine(x, slope, intercept, out=torch.empty_like(x)))
        return *_norm_backward(grad, x, gain, mean, rstd, slope, ctx.groups), None, None


class NormSiLU(nn.GroupNorm):
    """Group norm and SiLU of a volume; parameters are those of ``torch.nn.GroupNorm``.

    Statistics are float32 under any autocast; the output has the data type of the input and its channels last.

    Shape:
        ``(B, C, H, W, D)`` -> ``(B, C, H, W, D)``
    """

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():  # noqa: SIM102 (TorchScript drops this branch only if the call stands alone)
            if in_use():
                return self._fused(x)
        return F.silu(F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps))

    @torch.jit.unused
    def _fused(self, x: Tensor) -> Tensor:
        rows = x.permute(0, 2, 3, 4, 1).contiguous()  # (B, H, W, D, C)
        gain, offset = (t.expand(x.shape[0], 1, -1) for t in (self.weight, self.bias))
        y = NormModulateSiLU.apply(_flat(rows), gain, offset, self.num_groups, self.eps)
        return y.view_as(rows).permute(0, 4, 1, 2, 3)  # (B, C, H, W, D)


def _flat(rows: Tensor) -> Tensor:
    """``(B, H, W, D, C)`` as ``(1, B, P, C)``."""
    return rows.flatten(1, 3)[None]


def _per_volume(t: Tensor) -> Tensor:
    """``(B, 1, C)`` as ``(B, 1, 1, 1, C)``."""
    return t[:, :, None, None]


def _room_for_padding(rows: Tensor, pads: Sequence[int]) -> Tensor:
    """Fresh memory for ``(B, H, W, D, C)`` and padding around it; ``pads`` as ``F.pad`` takes them."""
    b, h, w, d, c = rows.shape
    return rows.new_empty(b, h + pads[4] + pads[5], w + pads[2] + pads[3], d + pads[0] + pads[1], c)


def _inner(padded: Tensor, pads: Sequence[int]) -> Tensor:
    """The part of ``padded`` ``(B, H', W', D', C)`` that is no padding, as a view."""
    for axis in (1, 2, 3):
        front, back = pads[6 - 2 * axis], pads[7 - 2 * axis]
        padded = padded.narrow(axis, front, padded.shape[axis] - front - back)
    return padded


def _replicate_edges_(padded: Tensor, pads: Sequence[int]) -> None:
    """Fill the padding of ``(B, H', W', D', C)`` with the nearest voxels of its inner part."""
    for axis in (3, 2, 1):
        front, back = pads[6 - 2 * axis], pads[7 - 2 * axis]
        size = padded.shape[axis]
        padded.narrow(axis, 0, front).copy_(padded.narrow(axis, front, 1))
        padded.narrow(axis, size - back, back).copy_(padded.narrow(axis, size - back - 1, 1))


def _fold_edges_(grad: Tensor, pads: Sequence[int]) -> None:
    """Adjoint of :func:`_replicate_edges_`: add the gradients of the padding to those of the voxels it repeats."""
    for axis in (1, 2, 3):
        front, back = pads[6 - 2 * axis], pads[7 - 2 * axis]
        size = grad.shape[axis]
        grad.narrow(axis, front, 1).add_(grad.narrow(axis, 0, front).sum(axis, keepdim=True))
        grad.narrow(axis, size - back - 1, 1).add_(grad.narrow(axis, size - back, back).sum(axis, keepdim=True))


class _NormSiLUConv(torch.autograd.Function):
    """Group norm, SiLU, replicate padding and convolution; of all that, only the input is kept."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        gain: Tensor,
        offset: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        groups: int,
        eps: float,
        stride: list[int],
        pads: list[int],
    ) -> Tensor:
        padded = _room_for_padding(rows, pads)
        # The padded volume is larger than ``rows``, so its memory can hold the deviations before it holds the result.
        scratch = padded.view(-1)[: rows.numel()].view_as(_flat(rows))
        mean, rstd = group_moments(_flat(rows), groups, eps, scratch)
        slope = rstd * gain
        intercept = offset - mean * slope
        _NormSiLUConv._activate_(padded, rows, slope, intercept, pads)
        ctx.save_for_backward(rows, gain, weight, mean, rstd, slope, intercept)
        ctx.settings = groups, stride, pads, None if bias is None else list(bias.shape)
        return F.conv3d(padded.permute(0, 4, 1, 2, 3), weight, bias, stride)

    @staticmethod
    def _activate_(padded: Tensor, rows: Tensor, slope: Tensor, intercept: Tensor, pads: Sequence[int]) -> None:
        inner = _affine(rows, _per_volume(slope), _per_volume(intercept), out=_inner(padded, pads))
        F.silu(inner, inplace=True)
        _replicate_edges_(padded, pads)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, gain, weight, mean, rstd, slope, intercept = ctx.saved_tensors
        groups, stride, pads, bias_shape = ctx.settings
        padded = _room_for_padding(rows, pads)
        _NormSiLUConv._activate_(padded, rows, slope, intercept, pads)
        needed = [any(ctx.needs_input_grad[:3]), *ctx.needs_input_grad[3:5]]
        grad_padded, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
            grad, padded.permute(0, 4, 1, 2, 3), weight, bias_shape, stride, [0] * 3, [1] * 3, False, [0] * 3, 1, needed
        )
        del padded, grad
        if not needed[0]:
            return None, None, None, grad_weight, grad_bias, None, None, None, None
        grad_padded = grad_padded.permute(0, 2, 3, 4, 1)  # (B, H', W', D', C)
        _fold_edges_(grad_padded, pads)
        activated = _affine(rows, _per_volume(slope), _per_volume(intercept), out=torch.empty_like(rows))
        grad = _silu_backward(_inner(grad_padded, pads), activated)
        del grad_padded
        grad, grad_gain, grad_offset = _norm_backward(_flat(grad), _flat(rows), gain, mean, rstd, slope, groups)
        return grad.view_as(rows), grad_gain, grad_offset, grad_weight, grad_bias, None, None, None, None


def norm_silu_conv(x: Tensor, norm: NormSiLU, conv: nn.Conv3d, pads: Sequence[int]) -> Tensor:
    """``conv(pad(silu(norm(x))))``, keeping ``x`` alone for the backward pass, which makes the rest again.

    Args:
        x: input of the norm.
        norm: its number of groups, eps and parameters are used.
        conv: convolution without padding of its own; its stride and parameters are used.
        pads: replicate padding in front and behind, last axis first, as ``F.pad`` takes it.

    Shape:
        ``(B, C, H, W, D)`` -> ``(B, C', H', W', D')``, channels last
    """
    weight, bias = conv.weight, conv.bias
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    rows = x.permute(0, 2, 3, 4, 1).contiguous()  # (B, H, W, D, C)
    gain, offset = (t.expand(x.shape[0], 1, -1) for t in (norm.weight, norm.bias))
    return _NormSiLUConv.apply(
        rows, gain, offset, weight, bias, norm.num_groups, norm.eps, list(conv.stride), list(pads)
    )
