"""The networks of alpha-WGAN, the GAN baseline for whole volumes.

Kwon, Han and Kim, "Generation of 3D Brain MRI Using Auto-Encoding Generative Adversarial Networks", MICCAI 2019, after
Rosca et al., "Variational Approaches for Auto-Encoding Generative Adversarial Networks", 2017: a generator, an encoder
that shares its codes, a discriminator of volumes and a discriminator of codes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["AlphaWGANGenerator", "CodeDiscriminator", "VolumeDiscriminator", "VolumeEncoder"]

LEVELS = 4  # stages that halve or double every axis
NORM_GROUPS = 8
NORMS = ("batch", "group")


def smallest_grid(image_size: Sequence[int]) -> tuple[int, int, int]:
    """Sides of a volume after all stages, (H, W, D) / 16.

    Raises:
        ValueError: not three sides that are multiples of 16.
    """
    factor = 2**LEVELS
    if len(image_size) != 3 or any(side < factor or side % factor for side in image_size):
        raise ValueError(f"image_size must be three multiples of {factor}, got {list(image_size)}")
    height, width, depth = (int(side) // factor for side in image_size)
    return height, width, depth


def _norm(kind: str, channels: int, spatial_dims: int) -> nn.Module:
    if kind not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(NORMS)}; got {kind!r}")
    if kind == "group":
        return nn.GroupNorm(NORM_GROUPS, channels)
    return nn.BatchNorm3d(channels) if spatial_dims == 3 else nn.BatchNorm1d(channels)


class EnlargingConv3d(nn.Conv3d):
    """Nearest-neighbour enlargement by 2 and a 3^3 convolution without bias, in one convolution on the small grid.

    Of three neighbours on the enlarged grid two are the same voxel of the small one. So each of the eight places that a
    voxel becomes has a kernel of its own on the small grid, made of sums of the 3^3 kernel's weights: eight times the
    channels there are the enlarged volume. Results are those of the two layers but for rounding; no enlarged volume of
    ``in_channels`` is made, and a last layer with one channel takes a sixth of the time on a CPU.

    Args:
        in_channels: channels of the small volume.
        out_channels: channels of the large one.

    Shape:
        (B, in_channels, H, W, D) -> (B, out_channels, 2 H, 2 W, 2 D)
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1, bias=False)

    def forward(self, volume: Tensor) -> Tensor:
        """(B, in_channels, H, W, D) -> (B, out_channels, 2 H, 2 W, 2 D)."""
        kernel = self.weight
        for axis in (2, 3, 4):
            before, here, after = kernel.unbind(axis)
            none = torch.zeros_like(here)
            first = torch.stack([before, here + after, none], axis)  # the place that the voxel before touches
            second = torch.stack([none, before + here, after], axis)
            kernel = torch.cat([first, second])
        places = F.conv3d(volume, kernel, padding=1)  # (B, 2 for D x 2 for W x 2 for H x out_channels, H, W, D)
        batch, _, height, width, depth = places.shape
        places = places.reshape(batch, 2, 2, 2, self.out_channels, height, width, depth)
        places = places.permute(0, 4, 5, 3, 6, 2, 7, 1)  # (B, out_channels, H, 2, W, 2, D, 2)
        return places.reshape(batch, self.out_channels, 2 * height, 2 * width, 2 * depth)


class AlphaWGANGenerator(nn.Module):
    """Code in, volume out: a transposed convolution to the smallest grid, then four times enlarge and convolve.

    With 1,000 code channels, 64 channels and volumes of 64^3 it has the published 37.42 million parameters:
    512 channels at 4^3, then nearest-neighbour enlargement and 3^3 convolutions to 256, 128, 64 and the image's
    channels, batch norm and ReLU between them, tanh at the end.

    Args:
        image_size: voxels (H, W, D), multiples of 16.
        code_size: length of the code.
        channels: channels before the last convolution; the first stage has eight times as many.
        out_channels: channels of the image.

    Shape:
        (B, code_size, 1, 1, 1) -> (B, out_channels, H, W, D) in [-1, 1]

    Raises:
        ValueError: sides that are not multiples of 16.
    """

    def __init__(
        self, image_size: Sequence[int], code_size: int = 1000, channels: int = 64, out_channels: int = 1
    ) -> None:
        super().__init__()
        widths = [8 * channels, 4 * channels, 2 * channels, channels]
        layers: list[nn.Module] = [nn.ConvTranspose3d(code_size, widths[0], smallest_grid(image_size), bias=False)]
        for before, after in zip(widths, [*widths[1:], out_channels]):
            layers += [nn.BatchNorm3d(before), nn.ReLU(), EnlargingConv3d(before, after)]
        self.layers = nn.Sequential(*layers, nn.Tanh())

    def forward(self, code: Tensor) -> Tensor:
        """(B, code_size, 1, 1, 1) -> (B, out_channels, H, W, D)."""
        return self.layers(code)


class VolumeEncoder(nn.Module):
    """Volume in, code out: four strided convolutions, then one as large as the grid that is left.

    With 64 channels and 1,000 code channels at 64^3 it has the published 43.79 million parameters; with one code channel
    it is the discriminator's network of 11.05 million.

    Args:
        image_size: voxels (H, W, D), multiples of 16.
        code_size: length of the code.
        channels: channels after the first convolution; they double with every stage.
        in_channels: channels of the image.
        norm: ``"batch"`` (as published) or ``"group"``, from the second convolution on.

    Shape:
        (B, in_channels, H, W, D) -> (B, code_size, 1, 1, 1)

    Raises:
        ValueError: sides that are not multiples of 16, or another norm.
    """

    def __init__(
        self,
        image_size: Sequence[int],
        code_size: int = 1000,
        channels: int = 64,
        in_channels: int = 1,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        widths = [channels * 2**level for level in range(LEVELS)]
        layers: list[nn.Module] = []
        for before, after in zip([in_channels, *widths], widths):
            layers.append(nn.Conv3d(before, after, 4, stride=2, padding=1))
            if len(layers) > 1:
                layers.append(_norm(norm, after, spatial_dims=3))
            layers.append(nn.LeakyReLU(0.2))
        self.layers = nn.Sequential(*layers, nn.Conv3d(widths[-1], code_size, smallest_grid(image_size)))

    def forward(self, volume: Tensor) -> Tensor:
        """(B, in_channels, H, W, D) -> (B, code_size, 1, 1, 1)."""
        return self.layers(volume)


class VolumeDiscriminator(VolumeEncoder):
    """The encoder's network with one number at its end: how real a volume looks, unbounded.

    A gradient penalty is one term per volume, and batch norm ties the volumes of a batch together (Gulrajani et al.,
    2017, section 4); so group norm is the default, and batch norm is as published.

    Args: as of :class:`VolumeEncoder`.

    Shape:
        (B, in_channels, H, W, D) -> (B,)
    """

    def __init__(
        self, image_size: Sequence[int], channels: int = 64, in_channels: int = 1, norm: str = "group"
    ) -> None:
        super().__init__(image_size, code_size=1, channels=channels, in_channels=in_channels, norm=norm)

    def forward(self, volume: Tensor) -> Tensor:
        """(B, in_channels, H, W, D) -> (B,)."""
        return self.layers(volume).flatten()


class CodeDiscriminator(nn.Module):
    """Tells codes of the encoder from standard normal noise: two hidden layers (20.90 million parameters at 4,096).

    Args:
        code_size: length of the code.
        hidden: width of both hidden layers.
        norm: ``"group"``, or ``"batch"`` as published.

    Shape:
        (B, code_size, 1, 1, 1) -> (B,)

    Raises:
        ValueError: another norm.
    """

    def __init__(self, code_size: int = 1000, hidden: int = 4096, norm: str = "group") -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before in (code_size, hidden):
            layers += [nn.Linear(before, hidden), _norm(norm, hidden, spatial_dims=1), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Linear(hidden, 1))

    def forward(self, code: Tensor) -> Tensor:
        """(B, code_size, 1, 1, 1) -> (B,)."""
        return self.layers(torch.flatten(code, 1)).flatten()
