"""MONAI's ``SwinUNETR`` in a form that TorchScript takes: the same layers, weights and arithmetic, another ``forward``.

Hatamizadeh et al., "Swin UNETR: Swin transformers for semantic segmentation of brain tumors in MRI images", BrainLes 2021;
windows and their shift are those of Liu et al., "Swin transformer: Hierarchical vision transformer using shifted windows",
ICCV 2021. MONAI builds every layer here; only what happens between them is written again.
"""

# No `from __future__ import annotations`: TorchScript reads the class's annotations and needs types, not text.

from collections import OrderedDict
from collections.abc import Sequence
from typing import cast

import torch
from monai.networks.nets import SwinUNETR
from monai.networks.nets.swin_unetr import (
    BasicLayer,
    PatchMerging,
    SwinTransformer,
    SwinTransformerBlock,
    WindowAttention,
)
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ScriptableSwinUNETR"]


class ScriptableSwinUNETR(SwinUNETR):
    """A ``SwinUNETR`` for volumes whose state dict is that of MONAI's and which ``torch.jit.script`` can export.

    Args:
        in_channels: of the volume.
        out_channels: of the output.
        feature_size: width of the first stage, a multiple of 12.
        depths: blocks in each of the four stages.
        num_heads: attention heads in each of the four stages.
        window_size: voxels of the stage's grid on each side of an attention window.

    Shape:
        volume (B, in_channels, H, W, D), sides multiples of 32 -> (B, out_channels, H, W, D)

    Raises:
        ValueError: sides that are no multiples of 32 (not in TorchScript, where a layer fails on them).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        feature_size: int = 24,
        depths: Sequence[int] = (2, 2, 2, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
    ) -> None:
        super().__init__(
            in_channels=in_channels,
            out_channels=out_channels,
            feature_size=feature_size,
            depths=depths,
            num_heads=num_heads,
            window_size=window_size,
        )
        self.add_module("swinViT", _Transformer(self.swinViT))

    def forward(self, x_in: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            self._check_input_size(x_in.shape[2:])
        features = self.swinViT(x_in)
        skips = self.encoder2(features[0]), self.encoder3(features[1]), self.encoder4(features[2])
        x = self.decoder5(self.encoder10(features[4]), features[3])
        x = self.decoder4(x, skips[2])
        x = self.decoder3(x, skips[1])
        x = self.decoder2(x, skips[0])
        return self.out(self.decoder1(x, self.encoder1(x_in)))


class _Transformer(nn.Module):
    """The five levels of features, each standardised over its channels; (B, C, H, W, D) in and out."""

    def __init__(self, made: SwinTransformer) -> None:
        super().__init__()
        self.patch_embed = nn.Sequential(OrderedDict(proj=made.patch_embed.proj))  # with MONAI's name of the weights
        self.layers1, self.layers2, self.layers3, self.layers4 = (
            nn.ModuleList([_Stage(cast(BasicLayer, stage)) for stage in layers])
            for layers in (made.layers1, made.layers2, made.layers3, made.layers4)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.patch_embed(x)
        found = [_standardised(x)]
        x = self.layers1[0](x)
        found.append(_standardised(x))
        x = self.layers2[0](x)
        found.append(_standardised(x))
        x = self.layers3[0](x)
        found.append(_standardised(x))
        x = self.layers4[0](x)
        found.append(_standardised(x))
        return found


def _standardised(x: Tensor) -> Tensor:
    x = x.permute(0, 2, 3, 4, 1)
    return F.layer_norm(x, [x.shape[-1]]).permute(0, 4, 1, 2, 3)


class _Stage(nn.Module):
    """Blocks on one grid, then half the grid and twice the channels."""

    def __init__(self, made: BasicLayer) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([_Block(cast(SwinTransformerBlock, block)) for block in made.blocks])
        assert isinstance(made.downsample, PatchMerging)
        self.downsample = _Merging(made.downsample)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 4, 1)  # (B, H, W, D, C)
        for block in self.blocks:
            x = block(x)
        return self.downsample(x).permute(0, 4, 1, 2, 3)


class _Merging(nn.Module):
    """2 x 2 x 2 voxels become one; in the order that MONAI's weights are for."""

    def __init__(self, made: PatchMerging) -> None:
        super().__init__()
        self.reduction, self.norm = made.reduction, made.norm

    def forward(self, x: Tensor) -> Tensor:
        parts = [
            x[:, 0::2, 0::2, 0::2],
            x[:, 1::2, 0::2, 0::2],
            x[:, 0::2, 1::2, 0::2],
            x[:, 0::2, 0::2, 1::2],
            x[:, 1::2, 1::2, 0::2],
            x[:, 1::2, 0::2, 1::2],
            x[:, 0::2, 1::2, 1::2],
            x[:, 1::2, 1::2, 1::2],
        ]
        return self.reduction(self.norm(torch.cat(parts, -1)))


class _Block(nn.Module):
    """Attention within windows and a perceptron per voxel, each added to its input (B, H, W, D, C)."""

    def __init__(self, made: SwinTransformerBlock) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2, self.mlp = made.norm1, _Attention(made.attn), made.norm2, made.mlp
        self.window: list[int] = [int(n) for n in made.window_size]
        self.shift: list[int] = [int(n) for n in made.shift_size]

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._attend(self.norm1(x))
        return x + self.mlp(self.norm2(x))

    def _attend(self, x: Tensor) -> Tensor:
        height, width, depth = x.shape[1], x.shape[2], x.shape[3]
        window, shift = _fitted([height, width, depth], self.window, self.shift)
        x = F.pad(x, [0, 0, 0, -depth % window[2], 0, -width % window[1], 0, -height % window[0]])
        shifted = shift[0] > 0 or shift[1] > 0 or shift[2] > 0
        mask: Tensor | None = None
        if shifted:
            x = x.roll([-shift[0], -shift[1], -shift[2]], [1, 2, 3])
            mask = _apart(x, window, shift)
        grid = [x.shape[0], x.shape[1], x.shape[2], x.shape[3]]
        x = _together(self.attn(_windows(x, window), mask), window, grid)
        if shifted:
            x = x.roll(shift, [1, 2, 3])
        return x[:, :height, :width, :depth].contiguous()


class _Attention(nn.Module):
    """Multi-head attention in each window, with a learned bias for each relative position."""

    relative_position_index: Tensor

    def __init__(self, made: WindowAttention) -> None:
        super().__init__()
        self.num_heads, self.scale = int(made.num_heads), float(made.scale)
        self.relative_position_bias_table = made.relative_position_bias_table
        self.register_buffer("relative_position_index", made.get_buffer("relative_position_index"))
        self.qkv, self.proj = made.qkv, made.proj

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4).unbind(0)
        index = self.relative_position_index[:n, :n].reshape(-1)
        bias = self.relative_position_bias_table[index].reshape(n, n, self.num_heads).permute(2, 0, 1)
        logits = (q * self.scale) @ k.transpose(-2, -1) + bias  # (B windows, heads, n, n)
        if mask is not None:
            logits = logits.view(-1, mask.shape[0], self.num_heads, n, n) + mask[:, None]
            logits = logits.view(b, self.num_heads, n, n)
        x = (logits.softmax(-1).to(v.dtype) @ v).transpose(1, 2).reshape(b, n, c)
        return self.proj(x)


def _fitted(size: list[int], window: list[int], shift: list[int]) -> tuple[list[int], list[int]]:
    """Window and shift of a grid: an axis that is no longer than the window is one window, and not shifted."""
    fits = [size[i] <= window[i] for i in range(3)]
    return (
        [size[i] if fits[i] else window[i] for i in range(3)],
        [0 if fits[i] else shift[i] for i in range(3)],
    )


def _windows(x: Tensor, window: list[int]) -> Tensor:
    """(B, H, W, D, C) -> (B windows, voxels of a window, C)."""
    b, height, width, depth, c = x.shape
    h, w, d = window
    x = x.reshape(b, height // h, h, width // w, w, depth // d, d, c)
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, h * w * d, c)


def _together(x: Tensor, window: list[int], grid: list[int]) -> Tensor:
    """The inverse of :func:`_windows`, for a grid (B, H, W, D)."""
    b, height, width, depth = grid
    h, w, d = window
    x = x.view(b, height // h, width // w, depth // d, h, w, d, -1)
    return x.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(b, height, width, depth, -1)


def _apart(x: Tensor, window: list[int], shift: list[int]) -> Tensor:
    """(windows, n, n): 0 for two voxels that were neighbours before the shift of ``x``, -100 for others."""
    region = torch.zeros([1, 1, 1], dtype=torch.long, device=x.device)
    for axis in range(3):
        size = x.shape[axis + 1]
        place = torch.arange(size, device=x.device)
        part = (place >= size - window[axis]).long() + (place >= size - shift[axis]).long()
        if shift[axis] == 0:
            part = torch.zeros_like(part)
        shape = [1, 1, 1]
        shape[axis] = size
        region = 3 * region + part.view(shape)
    of_window = _windows(region[None, ..., None], window)[..., 0]  # (windows, n)
    same = of_window[:, :, None] == of_window[:, None, :]
    mask = torch.zeros(same.shape, dtype=x.dtype, device=x.device)
    return mask.masked_fill(~same, -100.0)  # exp(-100) is 0 in float32
