"""3D VQ-GAN autoencoder: the first stage.

Esser et al., "Taming Transformers for High-Resolution Image Synthesis", CVPR 2021, in the three-dimensional form of
Ge et al., "Long Video Generation with Time-Agnostic VQGAN and Time-Sensitive Transformer", ECCV 2022, with the
settings of Khader et al., Scientific Reports 13, 7303 (2023).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medical_diffusion_components.networks import fast
from medical_diffusion_components.networks.codebook import CodebookOutput, EMACodebook
from medical_diffusion_components.networks.fast.norm_silu import NormSiLU, norm_silu_conv
from medical_diffusion_components.networks.tiling import Normalise, in_tiles, tiles_of

__all__ = ["VQGAN", "Decoder", "Encoder", "VQGANOutput", "check_divisible", "stage_strides"]


class VQGANOutput(NamedTuple):
    """What one pass of :class:`VQGAN` gives: the reconstruction (B, C, H, W, D) and what the codebook reports."""

    reconstruction: Tensor
    codebook: CodebookOutput


def stage_strides(compression: Sequence[int]) -> list[tuple[int, int, int]]:
    """Strides of the encoder's stages: 2 on the axes that still compress, 1 on the others.

    ``(4, 4, 1)`` gives ``[(2, 2, 1), (2, 2, 1)]``; ``(4, 4, 2)`` gives ``[(2, 2, 2), (2, 2, 1)]``.

    Raises:
        ValueError: not three powers of two, or no axis compresses.
    """
    compression = [int(c) for c in compression]
    if len(compression) != 3 or any(c < 1 or c & (c - 1) for c in compression):
        raise ValueError(f"compression must be three powers of two (H, W, D), got {tuple(compression)}")
    stages = max(compression).bit_length() - 1
    if stages == 0:
        raise ValueError(f"compression {tuple(compression)} compresses nothing: at least one axis must be 2 or more")
    h, w, d = ([2 if c >> (stage + 1) else 1 for stage in range(stages)] for c in compression)
    return list(zip(h, w, d))


def check_divisible(size: Sequence[int], divisor: Sequence[int], what: str = "image size") -> None:
    """Raise a ``ValueError`` naming the nearest sizes that do, unless ``divisor`` divides ``size`` on every axis."""
    size, divisor = [int(s) for s in size], [int(d) for d in divisor]
    if len(size) == len(divisor) and all(s > 0 and s % d == 0 for s, d in zip(size, divisor)):
        return
    below = tuple(max(s // d, 1) * d for s, d in zip(size, divisor))
    above = tuple(max(-(-s // d), 1) * d for s, d in zip(size, divisor))
    raise ValueError(
        f"{what} {tuple(size)} must be divisible by {tuple(divisor)}: the nearest that are: {below} and {above}"
    )


def _same_padding(kernel: int, stride: Sequence[int]) -> list[int]:
    """Padding for F.pad (last axis first) with a total of kernel - stride per axis, the odd voxel in front."""
    pads: list[int] = []
    for s in reversed(list(stride)):
        total = kernel - s
        pads += [total - total // 2, total // 2]
    return pads


class SameConv3d(nn.Module):
    """3D convolution with replicate padding; the output has floor(size / stride) voxels per axis."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: tuple[int, int, int] = (1, 1, 1)
    ) -> None:
        super().__init__()
        self.pads = _same_padding(kernel, stride)
        self.conv = nn.Conv3d(in_channels, out_channels, kernel, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, self.pads, mode="replicate"))


class SameConvTranspose3d(nn.Module):
    """Transposed 3D convolution with replicate padding; the output has exactly stride x size voxels per axis."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.pads = _same_padding(kernel, stride)
        self.conv = nn.ConvTranspose3d(in_channels, out_channels, kernel, stride=stride, padding=kernel - 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, self.pads, mode="replicate"))


class ResidualBlock(nn.Module):
    """(group norm, SiLU, 3^3 convolution) twice, plus identity; the number of channels stays."""

    def __init__(self, channels: int, norm_groups: int, norm_eps: float = 1e-6) -> None:
        super().__init__()
        self.norm1 = NormSiLU(norm_groups, channels, eps=norm_eps)
        self.conv1 = SameConv3d(channels, channels, 3)
        self.norm2 = NormSiLU(norm_groups, channels, eps=norm_eps)
        self.conv2 = SameConv3d(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():  # noqa: SIM102 (TorchScript drops this branch only if the call stands alone)
            if fast.in_use():
                return self._fused(x)
        return self.conv2(self.norm2(self.conv1(self.norm1(x)))) + x

    @torch.jit.unused
    def normalised_by(self, x: Tensor, normalise: Normalise) -> Tensor:
        """As a call, with ``normalise`` in place of both norms."""
        return self.conv2(normalise(self.norm2, self.conv1(normalise(self.norm1, x)))) + x

    @torch.jit.unused
    def _fused(self, x: Tensor) -> Tensor:
        h = norm_silu_conv(x, self.norm1, self.conv1.conv, self.conv1.pads)
        return norm_silu_conv(h, self.norm2, self.conv2.conv, self.conv2.pads).add_(x)


class Encoder(nn.Module):
    """Strided convolutions and residual blocks; channels double at each stage.

    Args:
        in_channels: channels of the image.
        base_channels: channels after the first convolution.
        compression: how many voxels become one, per axis (H, W, D); powers of two.
        norm_groups: groups of every group norm.

    Shape:
        (B, in_channels, H, W, D) -> (B, out_channels, H / c_h, W / c_w, D / c_d)
    """

    def __init__(self, in_channels: int, base_channels: int, compression: Sequence[int], norm_groups: int = 32) -> None:
        super().__init__()
        self.conv_in = SameConv3d(in_channels, base_channels, 3)
        stages: list[nn.Module] = []
        channels = base_channels
        for stride in stage_strides(compression):
            stages.append(SameConv3d(channels, 2 * channels, 4, stride))
            channels *= 2
            stages.append(ResidualBlock(channels, norm_groups))
        self.stages = nn.Sequential(*stages)
        self.norm_out = NormSiLU(norm_groups, channels, eps=1e-6)
        self.out_channels = channels

    def forward(self, x: Tensor) -> Tensor:
        return self.norm_out(self.stages(self.conv_in(x)))

    @torch.jit.unused
    def normalised_by(self, x: Tensor, normalise: Normalise) -> Tensor:
        """As a call, with ``normalise`` in place of every norm."""
        return normalise(self.norm_out, _stages_normalised_by(self.stages, self.conv_in(x), normalise))


class Decoder(nn.Module):
    """Mirror of :class:`Encoder`: transposed convolutions with the mirrored strides, two residual blocks each.

    Shape:
        (B, encoder.out_channels, h, w, d) -> (B, out_channels, H, W, D)
    """

    def __init__(
        self, out_channels: int, base_channels: int, compression: Sequence[int], norm_groups: int = 32
    ) -> None:
        super().__init__()
        strides = stage_strides(compression)[::-1]
        channels = base_channels * 2 ** len(strides)
        self.in_channels = channels
        self.norm_in = NormSiLU(norm_groups, channels, eps=1e-6)
        stages: list[nn.Module] = []
        for index, stride in enumerate(strides):
            width = channels if index == 0 else channels // 2
            stages.append(SameConvTranspose3d(channels, width, 4, stride))
            stages += [ResidualBlock(width, norm_groups), ResidualBlock(width, norm_groups)]
            channels = width
        self.stages = nn.Sequential(*stages)
        self.conv_out = SameConv3d(channels, out_channels, 3)

    def forward(self, h: Tensor) -> Tensor:
        return self.conv_out(self.stages(self.norm_in(h)))

    @torch.jit.unused
    def normalised_by(self, h: Tensor, normalise: Normalise) -> Tensor:
        """As a call, with ``normalise`` in place of every norm."""
        return self.conv_out(_stages_normalised_by(self.stages, normalise(self.norm_in, h), normalise))


def _stages_normalised_by(stages: nn.Sequential, x: Tensor, normalise: Normalise) -> Tensor:
    for stage in stages:
        x = stage.normalised_by(x, normalise) if isinstance(stage, ResidualBlock) else stage(x)
    return x


def _reach(compression: Sequence[int]) -> list[int]:
    """Latent positions, on each side along each axis, that a tile's result depends on; of the decoder, which sees farther.

    A 3^3 convolution adds one voxel of its resolution; one of 4^3 one of the coarser resolution, or two without stride.
    """
    reach = []
    for along in zip(*stage_strides(compression)):
        resolution = math.prod(along)  # voxels per latent position, here of the finest
        positions = 1 / resolution
        for stride in along:
            positions += 2 * 2 / resolution  # two residual blocks
            resolution //= stride
            positions += (1 if stride == 2 else 2) / resolution
        reach.append(math.ceil(positions))
    return reach


class VQGAN(nn.Module):
    """Encoder, codebook and decoder, with MONAI's first-stage interface.

    A volume of 64x64x64 with compression (4, 4, 4) and a codebook of 8 channels: encoded to 8 x 16x16x16, each of the
    4,096 positions replaced by its nearest code, decoded to 64x64x64.

    Args:
        codebook: the vector quantiser; its ``dim`` is the number of latent channels.
        in_channels: channels of the image.
        base_channels: channels after the first convolution.
        compression: how many voxels become one latent position, per axis (H, W, D); powers of two.
        norm_groups: groups of every group norm; must divide twice ``base_channels``.
        tile_size: voxels (H, W, D) of the tiles in which larger volumes are encoded and decoded where no gradient is
            wanted, for less memory (see :mod:`~medical_diffusion_components.networks.tiling`); None: always whole.

    Raises:
        ValueError: a compression that is not powers of two, widths that the groups do not divide, or, when called,
            an image whose size the compression does not divide.
    """

    def __init__(
        self,
        codebook: EMACodebook,
        in_channels: int = 1,
        base_channels: int = 16,
        compression: Sequence[int] = (4, 4, 4),
        norm_groups: int = 32,
        tile_size: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if (2 * base_channels) % norm_groups:
            raise ValueError(
                f"norm_groups must divide 2 x base_channels: {norm_groups} does not divide {2 * base_channels}"
            )
        self.compression = [int(c) for c in compression]
        self.in_channels = in_channels
        self.tile_cells = self._cells_of(tile_size)
        self.latent_channels = codebook.dim
        self.encoder = Encoder(in_channels, base_channels, compression, norm_groups)
        self.to_codes = nn.Conv3d(self.encoder.out_channels, codebook.dim, 1)
        self.codebook = codebook
        self.from_codes = nn.Conv3d(codebook.dim, self.encoder.out_channels, 1)
        self.decoder = Decoder(in_channels, base_channels, compression, norm_groups)
        self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # torch's stub lacks it

    @torch.jit.unused
    def forward(self, image: Tensor) -> VQGANOutput:
        """Reconstruct ``image`` (B, C, H, W, D); in training mode the codebook learns."""
        coded = self.codebook(self.encode(image))
        return VQGANOutput(self.decode(coded.quantised), coded)

    @torch.jit.export
    def encode(self, image: Tensor) -> Tensor:
        """(B, C, H, W, D) -> unquantised latent (B, latent_channels, h, w, d)."""
        if not torch.jit.is_scripting():
            self._check_image(image)
            if self.tile_cells is not None and not torch.is_grad_enabled():
                return self.to_codes(self._tiled(image, self.encoder, self.latent_shape(image.shape[2:])[1:]))
        return self.to_codes(self.encoder(image))

    @torch.jit.export
    def decode(self, quantised: Tensor) -> Tensor:
        """Quantised latent (B, latent_channels, h, w, d) -> volume (B, C, H, W, D)."""
        if not torch.jit.is_scripting():  # noqa: SIM102 (TorchScript drops this branch only if the call stands alone)
            if self.tile_cells is not None and not torch.is_grad_enabled():
                return self._tiled(self.from_codes(quantised), self.decoder, quantised.shape[2:])
        return self.decoder(self.from_codes(quantised))

    @torch.jit.export
    def reconstruct(self, image: Tensor) -> Tensor:
        """Encode, quantise, decode, without any change of the codebook: (B, C, H, W, D) -> the same, in [-1, 1]."""
        return self.decode(self.codebook.quantise(self.encode(image))).clamp(-1.0, 1.0)

    @torch.jit.export
    def encode_stage_2_inputs(self, image: Tensor) -> Tensor:
        """Unquantised latent, min-max scaled to [-1, 1] with the codebook's own minimum and maximum."""
        low, high = self.codebook.value_range()
        return (self.encode(image).float() - low) / (high - low) * 2.0 - 1.0

    @torch.jit.export
    def decode_stage_2_outputs(self, latent: Tensor) -> Tensor:
        """Undo the scaling of :meth:`encode_stage_2_inputs`, quantise, decode; in [-1, 1] as images are."""
        low, high = self.codebook.value_range()
        return self.decode(self.codebook.quantise((latent + 1.0) / 2.0 * (high - low) + low)).clamp(-1.0, 1.0)

    def latent_shape(self, image_size: Sequence[int]) -> tuple[int, int, int, int]:
        """Shape (latent_channels, h, w, d) of the latent of an image of ``image_size`` (H, W, D) voxels."""
        check_divisible(image_size, self.compression)
        h, w, d = (int(s) // c for s, c in zip(image_size, self.compression))
        return self.latent_channels, h, w, d

    @torch.jit.unused
    def _check_image(self, image: Tensor) -> None:
        if image.ndim != 5 or image.shape[1] != self.in_channels:
            raise ValueError(f"expected an image (B, {self.in_channels}, H, W, D), got shape {tuple(image.shape)}")
        check_divisible(image.shape[2:], self.compression)

    @torch.jit.unused
    def _cells_of(self, tile_size: Sequence[int] | None) -> list[int] | None:
        if tile_size is None:
            return None
        given = list(tile_size) if isinstance(tile_size, Sequence) else []
        if len(given) != 3 or any(type(t) is not int or t < c or t % c for t, c in zip(given, self.compression)):
            raise ValueError(
                f"tile_size must be three numbers of voxels (H, W, D), each a multiple of the compression "
                f"{self.compression}, got {tile_size!r}"
            )
        return [t // c for t, c in zip(given, self.compression)]

    @torch.jit.unused
    def _tiled(self, x: Tensor, part: Encoder | Decoder, cells: Sequence[int]) -> Tensor:
        """``part`` of ``x``, tile by tile; ``cells`` (h, w, d) is the size of the latent."""
        assert self.tile_cells is not None
        if all(size <= tile for size, tile in zip(cells, self.tile_cells)):
            return part(x)
        one = [1, 1, 1]
        encoding = isinstance(part, Encoder)
        channels = self.encoder.out_channels if encoding else self.in_channels
        size = cells if encoding else [s * c for s, c in zip(cells, self.compression)]
        out = x.new_empty(x.shape[0], channels, *size)
        scales = (self.compression, one) if encoding else (one, self.compression)
        tiles = list(tiles_of(cells, self.tile_cells, _reach(self.compression)))
        return in_tiles(part.normalised_by, x, out, tiles, *scales)
