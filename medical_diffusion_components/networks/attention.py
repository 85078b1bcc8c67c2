"""Factorised attention over a volume whose depth is folded next to the batch.

Attending to all voxels of a volume at once is out of reach; video diffusion models (Ho et al., "Video diffusion
models", NeurIPS 2022) attend to the positions within a slice and to the slices at a position in turn. Within a slice
the cost is kept linear in the number of positions by "efficient attention" (Shen et al., "Efficient attention:
attention with linear complexities", WACV 2021). Along the depth, the position enters twice: as a rotation of queries
and keys (Su et al., "RoFormer: enhanced transformer with rotary position embedding", 2021) and as a learned bias per
distance (T5: Raffel et al., "Exploring the limits of transfer learning with a unified text-to-text transformer", JMLR
2020).

All modules here take and return ``(D, B, H, W, C)``: in that order convolutions within a slice, sequences along the
depth and products over the channels are all reached without a copy of the activations.
"""

# No `from __future__ import annotations`: TorchScript reads the class's annotations and needs types, not text.

import math

import torch
import torch.nn.functional as F
from einops.layers.torch import Rearrange
from torch import Tensor, nn

from medical_diffusion_components.networks import fast
from medical_diffusion_components.networks.fast.attention_in_pieces import attend_along_first

__all__ = [
    "ChannelNorm",
    "DepthAttention",
    "DepthPosition",
    "LinearSpatialAttention",
    "SpatialAttention",
    "distance_buckets",
    "rotate",
]


class ChannelNorm(nn.Module):
    """Layer norm over the channels with a gain and no bias.

    Args:
        channels: size of the last axis.
        eps: added to the variance.

    Shape:
        ``(..., C)`` -> ``(..., C)``
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.gain = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.gain.shape, self.gain.to(x.dtype), None, self.eps).to(x.dtype)


class LinearSpatialAttention(nn.Module):
    """Attention among the positions of each slice, linear in their number (Shen et al. 2021), added to the input.

    With queries normalised over the channels of a head and keys over the positions, ``softmax(q) (softmax(k)^T v)``
    needs no matrix of positions by positions.

    Args:
        channels: channels of the input and of the output.
        num_heads: number of heads.
        head_channels: channels of a head.

    Shape:
        ``(D, B, H, W, C)`` -> ``(D, B, H, W, C)``
    """

    def __init__(self, channels: int, num_heads: int, head_channels: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_channels = head_channels
        inner = num_heads * head_channels
        self.norm = ChannelNorm(channels)
        self.positions = Rearrange("d b h w c -> (d b) (h w) c")
        self.to_queries_keys = nn.Linear(channels, 2 * inner, bias=False)
        self.to_values = nn.Linear(channels, inner, bias=False)
        self.to_out = nn.Linear(inner, channels)

    def forward(self, x: Tensor) -> Tensor:
        heads, size = self.num_heads, self.head_channels
        normed = self.positions(self.norm(x))  # (D*B, H*W, C)
        w_queries, w_keys = self.to_queries_keys.weight.chunk(2)
        w_values = (self.to_values.weight * size**-0.5).unflatten(0, (heads, size))
        q = F.linear(normed, w_queries).unflatten(-1, (heads, size)).softmax(-1)  # (D*B, H*W, heads, size)
        # ``matmul`` would leave the keys transposed in memory, and the softmax over positions would copy them.
        k = torch.bmm(w_keys.expand(normed.shape[0], -1, -1), normed.transpose(1, 2)).softmax(-1)  # (D*B, I, H*W)
        if normed.shape[1] >= 4 * normed.shape[2]:
            # On large slices the keys gather the input itself, and both projections are applied to what they gathered:
            # values and attended values, the widest tensors of all, are never made.
            gathered = torch.bmm(k, normed).unflatten(1, (heads, size))  # (D*B, heads, size, C)
            context = torch.matmul(gathered, w_values.transpose(1, 2))  # (D*B, heads, size, size)
            w_out = self.to_out.weight.unflatten(1, (heads, size)).permute(1, 2, 0)  # (heads, size, C)
            out = torch.bmm(q.flatten(2), torch.matmul(context, w_out).flatten(1, 2)) + self.to_out.bias
        else:
            v = F.linear(normed, w_values.flatten(0, 1)).unflatten(-1, (heads, size)).transpose(1, 2)
            context = torch.matmul(k.unflatten(1, (heads, size)), v)  # (D*B, heads, size, size)
            out = self.to_out(torch.matmul(q.transpose(1, 2), context).transpose(1, 2).flatten(2))
        return x + out.view_as(x)


class SpatialAttention(nn.Module):
    """Softmax attention among the positions of each slice, added to the input.

    Args and shape as for :class:`LinearSpatialAttention`.
    """

    def __init__(self, channels: int, num_heads: int, head_channels: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_channels = head_channels
        inner = num_heads * head_channels
        self.norm = ChannelNorm(channels)
        self.positions = Rearrange("d b h w c -> (d b) (h w) c")
        self.split_heads = Rearrange("n p (qkv heads size) -> qkv n heads p size", qkv=3, heads=num_heads)
        self.merge_heads = Rearrange("n heads p size -> n p (heads size)")
        self.to_qkv = nn.Linear(channels, 3 * inner, bias=False)
        self.to_out = nn.Linear(inner, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split_heads(self.to_qkv(self.positions(self.norm(x)))).unbind(0)
        out = F.scaled_dot_product_attention(q, k, v)
        return x + self.to_out(self.merge_heads(out)).view_as(x)


class DepthPosition(nn.Module):
    """What depth attention knows about positions: rotation angles and a bias per relative position, for any depth.

    The bias follows T5: half the buckets are for keys in front of the query and half for keys behind it; of each half,
    the first half holds one distance per bucket, the rest grow logarithmically up to ``max_distance``, and all greater
    distances share the last one.

    Args:
        num_heads: number of heads, each with its own bias.
        head_channels: channels of a head; at most the first 32 are rotated, in pairs of neighbours.
        buckets: number of relative-position buckets, a multiple of 4.
        max_distance: distance in slices from which on all share a bucket, > buckets / 4.
        train_frequencies: whether the rotation frequencies are trained or stay at ``10000^(-2i / rotated)``.

    Raises:
        ValueError: a bucket count or a distance that cannot be laid out, or an odd number of channels to rotate.
    """

    buckets: Tensor

    def __init__(
        self,
        num_heads: int,
        head_channels: int,
        buckets: int = 32,
        max_distance: int = 32,
        train_frequencies: bool = False,
    ) -> None:
        super().__init__()
        if head_channels % 2:
            raise ValueError(f"head_channels must be even (rotation turns pairs of channels), got {head_channels}")
        rotated = min(32, head_channels)
        frequencies = 10000.0 ** (-torch.arange(0, rotated, 2, dtype=torch.float32) / rotated)
        self.frequencies = nn.Parameter(frequencies, requires_grad=train_frequencies)
        self.bias = nn.Embedding(buckets, num_heads)  # starts with a standard deviation of 1
        self.register_buffer("buckets", distance_buckets(buckets, max_distance), persistent=False)

    def forward(self, depth: int) -> tuple[Tensor, Tensor, Tensor]:
        """Cosines and sines of the angles ``(D, rotated / 2)``, and the bias ``(heads, D, D)`` (query, key)."""
        dtype = torch.promote_types(self.frequencies.dtype, torch.float32)
        angle = torch.arange(depth, device=self.frequencies.device, dtype=dtype)[:, None] * self.frequencies
        bias = self.bias(self.relative_buckets(depth)).permute(2, 0, 1)
        return angle.cos(), angle.sin(), bias

    def relative_buckets(self, depth: int) -> Tensor:
        """Bucket of every pair of positions, ``(D, D)`` (query, key)."""
        position = torch.arange(depth, device=self.buckets.device)
        offset = position[None, :] - position[:, None]  # key minus query
        bucket = self.buckets[offset.abs().clamp(max=self.buckets.shape[0] - 1)]
        return bucket + (offset > 0).long() * (self.bias.num_embeddings // 2)


def distance_buckets(buckets: int, max_distance: int) -> Tensor:
    """Bucket within its direction for each distance 0 ... ``max_distance``, ``(max_distance + 1,)`` int64."""
    if buckets < 4 or buckets % 4:
        raise ValueError(f"relative position buckets must be a positive multiple of 4, got {buckets}")
    per_direction = buckets // 2
    exact = per_direction // 2
    if max_distance <= exact:
        raise ValueError(f"with {buckets} buckets the maximum distance must exceed {exact}, got {max_distance}")
    growth = (per_direction - exact) / math.log(max_distance / exact)
    table = []
    for distance in range(max_distance + 1):
        if distance < exact:
            table.append(distance)
        else:
            # The small number keeps a logarithm that is a whole number on paper from falling just below it.
            table.append(min(exact + int(growth * math.log(distance / exact) + 1e-9), per_direction - 1))
    return torch.tensor(table)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor, head_channels: int) -> Tensor:
    """Turn neighbouring channels ``(2i, 2i + 1)`` of each head by the angle of their position (Su et al. 2021).

    Args:
        x: ``(D, N, heads * head_channels)``, or ``(1, ...)`` for the same at every position.
        cosine: ``(D, rotated / 2)``; channels of a head from ``rotated`` on pass unchanged.
        sine: as ``cosine``.
        head_channels: channels of a head.

    Shape:
        ``(D, N, heads * head_channels)``
    """
    cosine, sine = cosine[:, None, None], sine[:, None, None]
    rotated = 2 * cosine.shape[-1]
    x = x.unflatten(-1, (-1, head_channels))  # (D, N, heads, head_channels)
    even, odd = x[..., :rotated].unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack((even * cosine - odd * sine, odd * cosine + even * sine), dim=-1).flatten(-2)
    if rotated < head_channels:
        rest = x[..., rotated:].expand(turned.shape[0], -1, -1, -1)
        turned = torch.cat((turned, rest), dim=-1)
    return turned.flatten(-2).to(x.dtype)


class DepthAttention(nn.Module):
    """Softmax attention among the slices at each in-plane position, added to the input.

    Args:
        channels: channels of the input and of the output.
        num_heads: number of heads.
        head_channels: channels of a head.

    Shape:
        ``(D, B, H, W, C)`` -> ``(D, B, H, W, C)``; position from :class:`DepthPosition`.
    """

    __constants__ = ("max_fused_columns",)
    max_fused_columns = 2**15  # CUDA's kernels fail from 2^16 on: https://github.com/pytorch/pytorch/issues/146704

    def __init__(self, channels: int, num_heads: int, head_channels: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_channels = head_channels
        inner = num_heads * head_channels
        self.norm = ChannelNorm(channels)
        self.to_qkv = nn.Linear(channels, 3 * inner, bias=False)
        self.to_out = nn.Linear(inner, channels, bias=False)

    def forward(self, x: Tensor, position: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        normed = self.norm(x).flatten(1, 3)  # (D, B*H*W, C)
        columns, channels = normed.shape[1:]
        cosine, sine, bias = position
        w_queries, w_keys, w_values = self.to_qkv.weight.chunk(3)
        w_queries = w_queries * self.head_channels**-0.5
        if columns < channels:
            q = rotate(F.linear(normed, w_queries), cosine, sine, self.head_channels)
            k = rotate(F.linear(normed, w_keys), cosine, sine, self.head_channels)
        else:
            # Rotation is linear: turning one weight per slice saves several passes over the projected activations.
            w_queries = rotate(w_queries.t()[None], cosine, sine, self.head_channels)  # (D, C, heads * size)
            w_keys = rotate(w_keys.t()[None], cosine, sine, self.head_channels)
            if not torch.jit.is_scripting():  # noqa: SIM102 (TorchScript drops this branch only if the call stands alone)
                if fast.in_use() and x.device.type == "cpu" and channels <= 2 * self.head_channels:
                    return x + self._attend_in_pieces(normed, w_queries, w_keys, w_values, bias).view_as(x)
            q, k = torch.bmm(normed, w_queries), torch.bmm(normed, w_keys)
        out = self.to_out(self._attend(q, k, F.linear(normed, w_values), bias, fused=x.is_cuda))  # (B*H*W, D, C)
        return x + out.transpose(0, 1).reshape(x.shape)

    @torch.jit.unused
    def _attend_in_pieces(self, x: Tensor, w_queries: Tensor, w_keys: Tensor, w_values: Tensor, bias: Tensor) -> Tensor:
        """Attention from input ``(D, N, C)`` to output ``(D, N, C)``, for few channels on a processor.

        Heads gather the input itself, which is narrow, and values and output are projected at once.
        """
        heads, size = self.num_heads, self.head_channels
        w_queries, w_keys = (w.unflatten(2, (heads, size)).permute(2, 0, 1, 3) for w in (w_queries, w_keys))
        w_values = w_values.unflatten(0, (heads, size)).transpose(1, 2)  # (heads, C, size)
        mix = torch.matmul(w_values, self.to_out.weight.t().unflatten(0, (heads, size)))  # (heads, C, C)
        return attend_along_first(x, w_queries, w_keys, mix, bias)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, fused: bool) -> Tensor:
        """Softmax attention along the first axis, ``(D, N, heads * size)`` -> ``(N, D, heads * size)``.

        ``fused`` chooses PyTorch's fused kernel; on processors plain products are faster for sequences this short.
        """
        depth, columns, inner = q.shape
        heads, size = self.num_heads, self.head_channels
        if fused:
            q, k, v = [t.view(depth, columns, heads, size).permute(1, 2, 0, 3) for t in (q, k, v)]
            mask, most = bias[None].to(q.dtype), self.max_fused_columns
            parts: list[Tensor] = []
            for part_q, part_k, part_v in zip(q.split(most), k.split(most), v.split(most)):
                parts.append(F.scaled_dot_product_attention(part_q, part_k, part_v, attn_mask=mask, scale=1.0))
            out = parts[0] if len(parts) == 1 else torch.cat(parts)
        else:
            q, k, v = [t.view(depth, columns * heads, size).transpose(0, 1) for t in (q, k, v)]
            score = torch.bmm(q, k.transpose(1, 2)).view(columns, heads, depth, depth)
            weight = (score + bias).softmax(-1).view(columns * heads, depth, depth)
            out = torch.bmm(weight.to(v.dtype), v).view(columns, heads, depth, size)
        return out.transpose(1, 2).reshape(columns, depth, inner)
