"""Patch discriminators, the discriminators of the first stage.

Isola et al., "Image-to-Image Translation with Conditional Adversarial Networks", CVPR 2017, for the patch
discriminator; one in two dimensions on slices and one in three on volumes, as in Ge et al., ECCV 2022.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from monai.networks import nets
from torch import Tensor, nn

__all__ = ["DiscriminatorOutput", "PatchDiscriminator"]


KERNEL = 4
PADDING = 2


class DiscriminatorOutput(NamedTuple):
    """Patch logits (B, 1, ...) and the features of every layer before them, from the first to the last."""

    logits: Tensor
    features: list[Tensor]


class PatchDiscriminator(nets.PatchDiscriminator):
    """MONAI's patch discriminator with the paper's settings, returning logits and features by name.

    Four convolutions of 64, 128, 256 and 512 channels (kernel 4, leaky ReLU 0.2, batch norm from the second on, stride
    2 up to the third) and one to the logits. All are padded by 2, the last one too, which MONAI pads by 1: patches at the
    border count, and inputs may be as small as 8 voxels a side. Weights start as PyTorch's layers do. On a CPU,
    inputs so small that a layer's map is smaller than its kernel (below 18 voxels with three layers) are seen in float32
    under any autocast: PyTorch's bfloat16 convolution leaves part of its weight gradient unwritten there.

    Args:
        spatial_dims: 2 for slices, 3 for volumes.
        in_channels: channels of the image.
        channels: channels after the first convolution.
        num_layers: layers between the first convolution and the last.
    """

    def __init__(self, spatial_dims: int, in_channels: int = 1, channels: int = 64, num_layers: int = 3) -> None:
        super().__init__(
            spatial_dims=spatial_dims,
            channels=channels,
            in_channels=in_channels,
            num_layers_d=num_layers,
            kernel_size=KERNEL,
            activation=("LEAKYRELU", {"negative_slope": 0.2, "inplace": True}),
            norm="BATCH",
            bias=True,
            padding=PADDING,
        )
        self.num_layers = num_layers
        final = self.get_submodule("final_conv.conv")
        assert isinstance(final, nn.modules.conv._ConvNd)
        final.padding = (PADDING,) * spatial_dims
        for part in self.modules():
            if callable(reset := getattr(part, "reset_parameters", None)):
                reset()
        # the layout in which convolutions are fastest
        layout = torch.channels_last if spatial_dims == 2 else torch.channels_last_3d
        self.to(memory_format=layout)  # type: ignore[call-overload]  # torch's stub lacks it

    def forward(self, x: Tensor) -> DiscriminatorOutput:  # type: ignore[override]  # MONAI's is a list without names
        """(B, C, H, W) or (B, C, H, W, D) -> logits and features."""
        side = min(x.shape[2:])
        for _ in range(self.num_layers):
            side = side // 2 + 1
        if x.device.type == "cpu" and side < KERNEL:
            with torch.autocast("cpu", enabled=False):
                *features, logits = super().forward(x.to(torch.promote_types(x.dtype, torch.float32)))
        else:
            *features, logits = super().forward(x)
        return DiscriminatorOutput(logits, features)
