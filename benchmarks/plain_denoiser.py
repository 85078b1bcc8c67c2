"""The denoiser in its plainest form: what `denoiser.py` and the tests compare the fast one with.

3D convolutions on ``(B, C, H, W, D)`` in PyTorch's default layout, einsum attention, PyTorch's group norm, the norm over
channels written out, each operation by itself. It takes its weights from a ``Denoiser`` and shares no arithmetic with it.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F


def conv(module, x):
    """Convolution with a k x k x 1 kernel."""
    return F.conv3d(x, module.weight[..., None], module.bias, (*module.stride, 1), (*module.padding, 0))


def upsample(module, x):
    return F.conv_transpose3d(x, module.weight[..., None], module.bias, (2, 2, 1), (1, 1, 0))


def pointwise(module, x):
    """Convolution with a 1^3 kernel."""
    return F.conv3d(x, module.weight[..., None, None, None], module.bias)


def channel_norm(module, x):
    mean = x.mean(1, keepdim=True)
    variance = x.var(1, unbiased=False, keepdim=True)
    return (x - mean) / torch.sqrt(variance + 1e-5) * module.gain.view(1, -1, 1, 1, 1)


def project(module, x):
    """Linear map of the channels."""
    return F.conv3d(x, module.weight[..., None, None, None])


def in_heads(x, heads):
    """(B, C, H, W, D) -> (B, heads, size, H, W, D)"""
    return x.unflatten(1, (heads, -1))


def linear_spatial_attention(module, x):
    heads = module.num_heads
    normed = channel_norm(module.norm, x)
    q, k = (in_heads(part, heads) for part in project(module.to_queries_keys, normed).chunk(2, 1))
    v = in_heads(project(module.to_values, normed), heads)
    q = q.softmax(2) / math.sqrt(module.head_channels)
    k = k.flatten(3, 4).softmax(3).view_as(k)
    context = torch.einsum("nechwd,nefhwd->necfd", k, v)
    out = torch.einsum("nechwd,necfd->nefhwd", q, context).flatten(1, 2)
    return x + pointwise(module.to_out, out)


def spatial_attention(module, x):
    heads = module.num_heads
    qkv = project(module.to_qkv, channel_norm(module.norm, x))
    q, k, v = (in_heads(part, heads).flatten(3, 4) for part in qkv.chunk(3, 1))
    score = torch.einsum("necid,necjd->neijd", q, k) / math.sqrt(module.head_channels)
    out = torch.einsum("neijd,necjd->necid", score.softmax(3), v).flatten(1, 2)
    return x + pointwise(module.to_out, out.unflatten(2, x.shape[2:4]))


def bucket_of(offset, buckets, max_distance):
    """T5's bidirectional bucket of one relative position (key minus query)."""
    half = buckets // 2
    exact = half // 2
    base = half if offset > 0 else 0
    distance = abs(offset)
    if distance < exact:
        return base + distance
    grown = exact + int(math.log(distance / exact) / math.log(max_distance / exact) * (half - exact) + 1e-9)
    return base + min(grown, half - 1)


def rotated(x, frequencies):
    """Turn pairs of channels of (B, heads, size, H, W, D) by depth position times frequency, as complex numbers."""
    pairs, depth = len(frequencies), x.shape[-1]
    angle = frequencies[:, None, None, None] * torch.arange(depth, dtype=frequencies.dtype)  # (pairs, 1, 1, D)
    turning, rest = x[:, :, : 2 * pairs].unflatten(2, (pairs, 2)).movedim(3, -1), x[:, :, 2 * pairs :]
    turned = torch.view_as_complex(turning.contiguous()) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((torch.view_as_real(turned).movedim(-1, 3).flatten(2, 3), rest), 2)


@lru_cache
def buckets_of_pairs(depth, buckets, max_distance):
    """Bucket of every pair of positions, ``(D, D)`` (query, key)."""
    return torch.tensor([[bucket_of(k - q, buckets, max_distance) for k in range(depth)] for q in range(depth)])


def depth_bias(position, depth, max_distance=32):
    """Learned bias (heads, D, D) from query and key positions."""
    table = position.bias.weight
    return table[buckets_of_pairs(depth, table.shape[0], max_distance)].permute(2, 0, 1)


def depth_attention(module, x, position):
    heads = module.num_heads
    qkv = project(module.to_qkv, channel_norm(module.norm, x))
    q, k, v = (in_heads(part, heads) for part in qkv.chunk(3, 1))
    q, k = rotated(q, position.frequencies), rotated(k, position.frequencies)
    score = torch.einsum("nechwi,nechwj->nehwij", q, k) / math.sqrt(module.head_channels)
    score = score + depth_bias(position, x.shape[-1])[None, :, None, None]
    out = torch.einsum("nehwij,nechwj->nechwi", score.softmax(-1), v).flatten(1, 2)
    return x + pointwise(module.to_out, out)


def residual_block(module, x, embedding=None):
    h = F.group_norm(conv(module.conv1, x), module.norm1.groups, module.norm1.weight, module.norm1.bias)
    if embedding is not None:
        scale, shift = module.modulation(embedding)[..., None, None, None].chunk(2, dim=1)
        h = h * (1 + scale) + shift
    h = conv(module.conv2, F.silu(h))
    h = F.silu(F.group_norm(h, module.norm2.groups, module.norm2.weight, module.norm2.bias))
    return h + (x if isinstance(module.shortcut, torch.nn.Identity) else pointwise(module.shortcut, x))


def time_embedding(module, timesteps):
    half = module.channels // 2
    waves = []
    for timestep in timesteps.tolist():
        angles = [timestep * 10000 ** (-i / (half - 1)) for i in range(half)]
        waves.append([math.sin(a) for a in angles] + [math.cos(a) for a in angles])
    waves = torch.tensor(waves, dtype=module.linear1.weight.dtype)
    return module.linear2(F.gelu(module.linear1(waves)))


def level(module, x, embedding, position):
    x = residual_block(module.block2, residual_block(module.block1, x, embedding), embedding)
    return depth_attention(module.depth, linear_spatial_attention(module.spatial, x), position)


def middle(module, x, embedding, position):
    x = spatial_attention(module.spatial, residual_block(module.block1, x, embedding))
    return residual_block(module.block2, depth_attention(module.depth, x, position), embedding)


def denoiser(network, x, timesteps):
    embedding = F.silu(time_embedding(network.time, timesteps))
    position = network.position
    first = conv(network.first, x)
    h = depth_attention(network.first_depth, first, position)
    skips = []
    for index, stage in enumerate(network.down):
        h = level(stage, h, embedding, position)
        skips.append(h)
        if index < len(network.down) - 1:
            h = conv(network.downsample[index], h)
    h = middle(network.middle, h, embedding, position)
    for index, stage in enumerate(network.up):
        h = level(stage, torch.cat((h, skips.pop()), 1), embedding, position)
        if index < len(network.up) - 1:
            h = upsample(network.upsample[index], h)
    return pointwise(network.last, residual_block(network.last_block, torch.cat((h, first), 1)))
