"""The denoising network: a 3D U-Net with in-plane convolutions and factorised attention.

Activations are ``(D, B, H, W, C)`` throughout: the memory of a channels-last batch of slices, so that convolutions,
norms, products over channels and sequences along the depth all read it as it lies.

The architecture is that of video diffusion models (Ho et al., "Video diffusion models", NeurIPS 2022) with the depth of
a volume in the place of time, as in Khader et al., "Denoising diffusion probabilistic models for 3D medical image
generation", Scientific Reports 13, 7303 (2023). The diffusion timestep enters as in Ho et al., "Denoising diffusion
probabilistic models", NeurIPS 2020.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops.layers.torch import Rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from medical_diffusion_components.networks import fast
from medical_diffusion_components.networks.attention import (
    DepthAttention,
    DepthPosition,
    LinearSpatialAttention,
    SpatialAttention,
)
from medical_diffusion_components.networks.embeddings import ConditionEmbedding, TimeEmbedding
from medical_diffusion_components.networks.fast.norm_silu import NormModulateSiLU, group_moments

__all__ = [
    "Denoiser",
    "InPlaneConv",
    "InPlaneUpsample",
    "Level",
    "Middle",
    "ResidualBlock",
    "VolumeNormSiLU",
]


class InPlaneConv(nn.Conv2d):
    """Convolution within the slices of a volume.

    The depth counts as part of the batch, which is many times faster than a ``k x k x 1`` 3D convolution.

    Shape:
        ``(D, B, H, W, C)`` -> ``(D, B, H', W', C')``
    """

    def forward(self, x: Tensor) -> Tensor:
        y = self._conv_forward(x.flatten(0, 1).permute(0, 3, 1, 2), self.weight, self.bias)
        # In channels-last memory the way back is a view, and ``contiguous`` copies nothing.
        return y.permute(0, 2, 3, 1).contiguous().unflatten(0, (x.shape[0], x.shape[1]))


class InPlaneUpsample(nn.ConvTranspose2d):
    """Transposed convolution within the slices that doubles height and width.

    Shape:
        ``(D, B, H, W, C)`` -> ``(D, B, 2H, 2W, C)``
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, kernel_size=4, stride=2, padding=1)

    # The output is always twice as large, so the argument ``output_size`` of torch's class is left out.
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        y = F.conv_transpose2d(x.flatten(0, 1).permute(0, 3, 1, 2), self.weight, self.bias, stride=2, padding=1)
        return y.permute(0, 2, 3, 1).contiguous().unflatten(0, (x.shape[0], x.shape[1]))


class VolumeNormSiLU(nn.Module):
    """Group norm over whole volumes, optional scale and shift, SiLU.

    Statistics run over the height, width, depth and channels of a group and are float32 under any autocast.

    Args:
        groups: number of channel groups.
        channels: channels of the input, a multiple of ``groups``.
        eps: added to the variance.

    Shape:
        ``(D, B, H, W, C)`` -> ``(D, B, H, W, C)``; ``scale`` and ``shift`` ``(B, C)``.
    """

    def __init__(self, groups: int, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.groups = groups
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)
        gain = self.weight.to(dtype).expand(x.shape[1], 1, -1)
        offset = self.bias.to(dtype).expand(x.shape[1], 1, -1)
        if scale is not None and shift is not None:
            factor = (1 + scale.to(dtype))[:, None]
            gain = gain * factor
            offset = offset * factor + shift.to(dtype)[:, None]
        flat = x.flatten(2, 3)  # (D, B, H*W, C)
        if torch.jit.is_scripting():
            mean, rstd = group_moments(flat, self.groups, self.eps)
            slope = rstd * gain
            y = F.silu((flat * slope + (offset - mean * slope)).to(x.dtype))
        elif fast.in_use():
            y = NormModulateSiLU.apply(flat, gain, offset, self.groups, self.eps)
        else:
            by_volume = flat.permute(1, 3, 0, 2).to(dtype)  # (B, C, D, H*W)
            normalised = F.group_norm(by_volume, self.groups, eps=self.eps).permute(2, 0, 3, 1)
            y = F.silu((normalised * gain + offset).to(x.dtype))
        return y.view_as(x)


class ResidualBlock(nn.Module):
    """Two in-plane convolutions with group norm and SiLU, and a shortcut around them.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output; where they differ, the shortcut is a ``1^3`` convolution.
        groups: groups of the norms.
        embedding_channels: channels of the time embedding that scales and shifts after the first norm; 0 for none.

    Shape:
        ``(D, B, H, W, C)`` -> ``(D, B, H, W, C')``; ``embedding`` ``(B, E)``, already through SiLU.
    """

    def __init__(self, in_channels: int, out_channels: int, groups: int, embedding_channels: int = 0) -> None:
        super().__init__()
        self.modulation = nn.Linear(embedding_channels, 2 * out_channels) if embedding_channels else None
        self.conv1 = InPlaneConv(in_channels, out_channels, kernel_size=3, padding=1)
        self.norm1 = VolumeNormSiLU(groups, out_channels)
        self.conv2 = InPlaneConv(out_channels, out_channels, kernel_size=3, padding=1)
        self.norm2 = VolumeNormSiLU(groups, out_channels)
        self.shortcut = nn.Identity() if in_channels == out_channels else nn.Linear(in_channels, out_channels)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(x)
        if self.modulation is not None:
            scale, shift = self.modulation(embedding).chunk(2, dim=1)
            h = self.norm1(h, scale, shift)
        else:
            h = self.norm1(h)
        return self.norm2(self.conv2(h)) + self.shortcut(x)


class Level(nn.Module):
    """What each resolution of the U-Net does: two residual blocks, spatial attention, depth attention.

    Shape:
        ``(D, B, H, W, C)`` -> ``(D, B, H, W, C')``; ``embedding`` ``(B, E)``; position from ``DepthPosition``.
    """

    def __init__(
        self, in_channels: int, out_channels: int, num_heads: int, head_channels: int, groups: int, embedding: int
    ) -> None:
        super().__init__()
        self.block1 = ResidualBlock(in_channels, out_channels, groups, embedding)
        self.block2 = ResidualBlock(out_channels, out_channels, groups, embedding)
        self.spatial = LinearSpatialAttention(out_channels, num_heads, head_channels)
        self.depth = DepthAttention(out_channels, num_heads, head_channels)

    def forward(self, x: Tensor, embedding: Tensor, position: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        x = self.block2(self.block1(x, embedding), embedding)
        return self.depth(self.spatial(x), position)


class Middle(nn.Module):
    """The lowest resolution: residual block, full spatial attention, depth attention, residual block."""

    def __init__(self, channels: int, num_heads: int, head_channels: int, groups: int, embedding: int) -> None:
        super().__init__()
        self.block1 = ResidualBlock(channels, channels, groups, embedding)
        self.spatial = SpatialAttention(channels, num_heads, head_channels)
        self.depth = DepthAttention(channels, num_heads, head_channels)
        self.block2 = ResidualBlock(channels, channels, groups, embedding)

    def forward(self, x: Tensor, embedding: Tensor, position: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        x = self.depth(self.spatial(self.block1(x, embedding)), position)
        return self.block2(x, embedding)


class Denoiser(nn.Module):
    """Predicts the noise in a noisy latent volume.

    Convolutions and spatial attention act within slices, depth attention between them; only height and width are
    reduced. Called as MONAI's ``DiffusionModelUNet`` is, so MONAI's inferers and schedulers work with it.

    Args:
        in_channels: channels of the latent, in and out.
        base_channels: channels of the first level (by default the latent's height), a multiple of ``norm_groups``.
        channel_multipliers: channels of each level over ``base_channels``; one level per number.
        num_heads: attention heads.
        head_channels: channels of a head, even.
        norm_groups: groups of the group norms.
        first_kernel: in-plane size of the first convolution, odd.
        relative_position_buckets: buckets of the depth attention's position bias, a multiple of 4.
        relative_position_max_distance: distance in slices from which on all share a bucket.
        train_rotary_frequencies: train the rotary frequencies too.
        use_checkpointing: recompute each level in the backward pass instead of keeping its activations (less memory,
            about a third more time).
        patch_size: latent positions along H, W, D that become the channels of one, so that the network works on a smaller
            volume with more channels (the patches of Dosovitskiy et al., ICLR 2021, in front of a U-Net).
        conditions: declared conditions as in :class:`~medical_diffusion_components.data.Conditions`, each of which gets a
            :class:`ConditionEmbedding`; None: none, and no parameter or random number more.

    Shape:
        ``x (B, C, H, W, D)``, ``timesteps (B,)``, or (1,) for all, -> ``(B, C, H, W, D)``. H and W must be divisible by
        ``2^(levels - 1)`` times the patch, D by the patch alone. ``context (B, V)``, where MONAI's inferers put a
        condition: one number for each condition in the order of their names, NaN where missing; None: all are missing.
        A control branch's additions, where MONAI's control nets put theirs: ``down_block_additional_residuals``, in the
        order and shapes of :meth:`encode`'s list, and ``mid_block_additional_residual``, as the last of them.

    Raises:
        ValueError: sizes that do not fit together, a context without conditions declared, or class labels.
    """

    def __init__(
        self,
        in_channels: int = 8,
        base_channels: int = 32,
        channel_multipliers: Sequence[int] = (1, 2, 4, 8),
        num_heads: int = 8,
        head_channels: int = 32,
        norm_groups: int = 8,
        first_kernel: int = 7,
        relative_position_buckets: int = 32,
        relative_position_max_distance: int = 32,
        train_rotary_frequencies: bool = False,
        use_checkpointing: bool = False,
        patch_size: Sequence[int] = (1, 1, 1),
        conditions: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if base_channels < 4 or base_channels % 2 or base_channels % norm_groups:
            raise ValueError(
                f"base_channels must be even, at least 4 and divisible by norm_groups ({norm_groups}), got {base_channels}"
            )
        if len(channel_multipliers) == 0 or min(channel_multipliers) < 1:
            raise ValueError(f"channel_multipliers must be one or more positive numbers, got {channel_multipliers}")
        if first_kernel % 2 == 0:
            raise ValueError(f"first_kernel must be odd, got {first_kernel}")
        if len(patch_size) != 3 or min(patch_size) < 1:
            raise ValueError(f"patch_size must be three positive numbers, H, W, D, got {patch_size}")
        p, q, r = (int(n) for n in patch_size)
        self.in_channels = in_channels
        halvings = 2 ** (len(channel_multipliers) - 1)
        self.divisors = [p * halvings, q * halvings, r]  # of H, W, D
        self.use_checkpointing = use_checkpointing
        attention = (num_heads, head_channels)
        embedding = 4 * base_channels
        widths = [base_channels * multiplier for multiplier in channel_multipliers]

        self.time = TimeEmbedding(base_channels)
        self.position = DepthPosition(
            *attention, relative_position_buckets, relative_position_max_distance, train_rotary_frequencies
        )
        self.depth_first = Rearrange("b c (h p) (w q) (d r) -> d b h w (c p q r)", p=p, q=q, r=r)
        self.depth_last = Rearrange("d b h w (c p q r) -> b c (h p) (w q) (d r)", p=p, q=q, r=r)
        self.first = InPlaneConv(p * q * r * in_channels, base_channels, first_kernel, padding=first_kernel // 2)
        self.first_depth = DepthAttention(base_channels, *attention)
        self.down = nn.ModuleList()
        self.downsample = nn.ModuleList()
        for before, width in zip([base_channels, *widths], widths):
            self.down.append(Level(before, width, *attention, norm_groups, embedding))
            self.downsample.append(InPlaneConv(width, width, kernel_size=4, stride=2, padding=1))
        self.downsample[-1] = nn.Identity()
        self.middle = Middle(widths[-1], *attention, norm_groups, embedding)
        self.up = nn.ModuleList()
        self.upsample = nn.ModuleList()
        for before, width in zip([base_channels, *widths][-2::-1], widths[::-1]):
            self.up.append(Level(2 * width, before, *attention, norm_groups, embedding))
            self.upsample.append(InPlaneUpsample(before))
        self.upsample[-1] = nn.Identity()
        self.last_block = ResidualBlock(2 * base_channels, base_channels, norm_groups)
        self.last = nn.Linear(base_channels, p * q * r * in_channels)
        self.conditions = nn.ModuleList(  # last, so that the rest begins as it would without
            ConditionEmbedding(len(declared.get("values", ())), embedding)
            for _, declared in sorted((conditions or {}).items())
        )
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor | None = None,
        class_labels: Tensor | None = None,
        down_block_additional_residuals: list[Tensor] | None = None,
        mid_block_additional_residual: Tensor | None = None,
    ) -> Tensor:
        if class_labels is not None:
            raise ValueError("this denoiser has no class_labels, they must be None: its conditions are the context")
        self._check(x, timesteps)
        embedding = F.silu(self.embedded(timesteps.expand(x.shape[0]), context))
        patches = self.depth_first(x).contiguous()
        position = self.position(patches.shape[0])
        skips = self.encode(patches, embedding, position)  # (D, B, H, W, C) each
        h = self.middle(skips[-1], embedding, position)
        if down_block_additional_residuals is not None:
            if len(down_block_additional_residuals) != len(skips):
                raise ValueError(f"expected {len(skips)} residuals, got {len(down_block_additional_residuals)}")
            for place, residual in enumerate(down_block_additional_residuals):
                skips[place] = skips[place] + residual
        if mid_block_additional_residual is not None:
            h = h + mid_block_additional_residual
        return self.depth_last(self.decode(h, skips, embedding, position)).contiguous().to(x.dtype)  # (B, C, H, W, D)

    def encode(
        self,
        x: Tensor,
        embedding: Tensor,
        position: tuple[Tensor, Tensor, Tensor],
        beside: Tensor | None = None,
    ) -> list[Tensor]:
        """The encoder's half: what each resolution hands over to the decoder, finest first.

        Shape:
            ``(D, B, H, W, C)`` -> that of the first convolution and of every level, ``(D, B, H', W', C')`` each;
            ``beside``, if there is one, is added to the first convolution and has its shape
        """
        h = self.first(x)
        if beside is not None:
            h = h + beside
        skips = [h]
        if torch.jit.is_scripting():
            h = self.first_depth(h, position)
        else:
            h = self._run(self.first_depth, h, position)
        for level, downsample in zip(self.down, self.downsample):
            if torch.jit.is_scripting():
                h = level(h, embedding, position)
            else:
                h = self._run(level, h, embedding, position)
            skips.append(h)
            h = downsample(h)  # the last is the identity
        return skips

    def decode(
        self, h: Tensor, skips: list[Tensor], embedding: Tensor, position: tuple[Tensor, Tensor, Tensor]
    ) -> Tensor:
        """The decoder's half: from the middle and :meth:`encode`'s list, which it empties, to the output's channels."""
        for level, upsample in zip(self.up, self.upsample):
            h = torch.cat((h, skips.pop()), dim=-1)
            if torch.jit.is_scripting():
                h = level(h, embedding, position)
            else:
                h = self._run(level, h, embedding, position)
            h = upsample(h)
        return self.last(self.last_block(torch.cat((h, skips.pop()), dim=-1), embedding))

    def embedded(self, timesteps: Tensor, context: Tensor | None) -> Tensor:
        """Timesteps (B,) and conditions (B, V) as one embedding, (B, E)."""
        embedding, count = self.time(timesteps), len(self.conditions)
        if context is None:
            context = torch.full((timesteps.shape[0], count), math.nan, device=timesteps.device)
        elif count == 0:
            raise ValueError("this denoiser is unconditional: context must be None")
        elif context.shape != (timesteps.shape[0], count):
            wanted = [timesteps.shape[0], count]
            raise ValueError(f"expected conditions (B, V), a row for each volume, {wanted}, got {list(context.shape)}")
        for place, condition in enumerate(self.conditions):
            embedding = embedding + condition(context[:, place])
        return embedding

    @torch.jit.unused
    def _run(self, module: nn.Module, *inputs: Any) -> Tensor:
        """``module(*inputs)``, with or without keeping its activations for the backward pass."""
        if self.use_checkpointing and torch.is_grad_enabled():
            return checkpoint(module, *inputs, use_reentrant=False)
        return module(*inputs)

    def _check(self, x: Tensor, timesteps: Tensor) -> None:
        if x.dim() != 5 or x.shape[1] != self.in_channels:
            raise ValueError(f"expected x of shape (B, {self.in_channels}, H, W, D), got {list(x.shape)}")
        if timesteps.dim() != 1 or timesteps.shape[0] not in (1, x.shape[0]):
            raise ValueError(f"expected one timestep, or one per volume, ({x.shape[0]},), got {list(timesteps.shape)}")
        sizes = list(x.shape[2:])
        if any(size % divisor for size, divisor in zip(sizes, self.divisors)):
            lower = [max(size // n, 1) * n for size, n in zip(sizes, self.divisors)]
            upper = [-(-size // n) * n for size, n in zip(sizes, self.divisors)]
            raise ValueError(
                f"height, width and depth must be divisible by {self.divisors}, got {sizes}; the nearest sizes that are: "
                f"{lower} and {upper}"
            )
