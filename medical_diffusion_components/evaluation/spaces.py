"""Feature spaces in which volumes are compared: one for texture, one for anatomy, and what checks them.

A judge must not be the teacher: the perceptual loss trains the first stage on EfficientNet-Lite0, so the spaces that count
use another network; Lite0 is there for comparison with older figures alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medical_diffusion_components.evaluation.feature_space import FeatureSpace
from medical_diffusion_components.evaluation.radiomics import RadiomicsSpace
from medical_diffusion_components.evaluation.slice_features import SliceFeatures
from medical_diffusion_components.networks.image_features import EfficientNetFeatures

__all__ = ["AnatomySpace", "NetworkSpace", "SliceSpace", "default_spaces"]

KINDS = ("slices", "anatomy", "checks", "radiomics")
PLANES = ("yz", "zx", "xy")  # across H, W, D
BACKGROUND = -0.99  # slices that are nowhere brighter are empty


class SliceSpace(FeatureSpace):
    """Mean feature maps of slices, empty ones left out; in units of the training volumes' spread.

    Args:
        network: images -> list of maps, with a ``name``.
        axes: of the volume's three, those across which to cut.
        every: distance of two slices in voxels.
        counts: whether the space is a judge; False for one that is there for comparison alone.

    Shape:
        (C, H, W, D) in [-1, 1] -> (F,) float64
    """

    one_scale = True

    def __init__(
        self, network: nn.Module, axes: Sequence[int] = (0, 1, 2), every: int = 4, counts: bool = True
    ) -> None:
        super().__init__()
        self.slices = SliceFeatures(network, every, tuple(axes), background=BACKGROUND)
        self.counts = counts
        self.description = f"{network.name}; slices in {', '.join(PLANES[a] for a in axes)}, every {every} voxels"

    def forward(self, volume: Tensor) -> np.ndarray:
        return self.slices(volume[None])[0].double().cpu().numpy()

    @staticmethod
    def standardise(features: np.ndarray, training: np.ndarray) -> np.ndarray:
        """(n, F) in units of the training volumes, (N, F)."""
        return (features - training.mean(0)) / (training.std(0) + 1e-6)


class AnatomySpace(FeatureSpace):
    """Block averages, about ``side`` to an axis, each volume scaled to mean 0 and spread 1: where what lies.

    Args:
        side: blocks per axis, at most.
        counts: whether the space is a judge.

    Shape:
        (C, H, W, D) -> (F,) float64
    """

    one_scale = True

    def __init__(self, side: int = 16, counts: bool = True) -> None:
        super().__init__()
        self.side = side
        self.counts = counts
        self.description = f"block averages, at most {side} to an axis, each volume scaled to mean 0 and spread 1"

    def grid(self, size: Sequence[int]) -> tuple[int, ...]:
        """How many blocks a volume of so many voxels has along each axis."""
        return tuple(n // block for n, block in zip(size, self._block(size)))

    def _block(self, size: Sequence[int]) -> list[int]:
        return [max(1, -(-n // self.side)) for n in size]

    def forward(self, volume: Tensor) -> np.ndarray:
        small = F.avg_pool3d(volume[None].float(), self._block(volume.shape[1:]))[0].flatten().double()
        return ((small - small.mean()) / small.std().clamp(min=1e-6)).cpu().numpy()

    @staticmethod
    def standardise(features: np.ndarray, training: np.ndarray) -> np.ndarray:
        """(n, F) in units of the training volumes, (N, F); where they hardly vary, 0.05 is added to their spread."""
        return (features - training.mean(0)) / (training.std(0) + 0.05)


class NetworkSpace(FeatureSpace):
    """What a network of anybody's says of whole volumes.

    Args:
        network: (B, C, H, W, D) in [-1, 1] -> (B, F), with its weights; it is put into evaluation mode.
        counts: whether the space is a judge.

    Shape:
        (C, H, W, D) in [-1, 1] -> (F,) float64

    Raises:
        ValueError: when called, features that are no vector or not finite.
    """

    one_scale = True

    def __init__(self, network: nn.Module, counts: bool = True) -> None:
        super().__init__()
        self.network = network.eval()
        self.counts = counts
        weights = hashlib.sha256()
        for name, tensor in sorted(network.state_dict().items()):
            weights.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            weights.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        self.description = f"{type(network).__name__} with the weights {weights.hexdigest()[:16]}"

    @torch.no_grad()
    def forward(self, volume: Tensor) -> np.ndarray:
        features = self.network(volume[None].float())
        if features.ndim != 2 or len(features) != 1 or not torch.isfinite(features).all():
            raise ValueError(
                f"{self.description}: expected finite features (1, F) of a volume (1, C, H, W, D), got shape "
                f"{tuple(features.shape)}, finite: {bool(torch.isfinite(features).all())}"
            )
        return features[0].double().cpu().numpy()

    @staticmethod
    def standardise(features: np.ndarray, training: np.ndarray) -> np.ndarray:
        """(n, F) in units of the training volumes, (N, F)."""
        return (features - training.mean(0)) / (training.std(0) + 1e-6)


def default_spaces(
    size: Sequence[int],
    every: int = 4,
    kinds: Sequence[str] = ("slices", "anatomy", "checks"),
    network: nn.Module | None = None,
) -> dict[str, FeatureSpace]:
    """The spaces of the protocol: three planes by EfficientNet-Lite2, anatomy, and two to check them by; and others.

    Args:
        size: voxels (H, W, D); planes whose slices are smaller than 16 voxels are left out.
        every: distance of two slices in voxels.
        kinds: ``anatomy``, in which neighbours are found, and any of ``slices``, ``checks`` (the same with random weights,
            and the older network) and ``radiomics``.
        network: of a space ``network``, (B, C, H, W, D) -> (B, F); None for none.

    Raises:
        ValueError: an unknown kind, or no ``anatomy``.
        ImportError: ``radiomics`` without numpyradiomics.
    """
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise ValueError(f"expected spaces of {', '.join(KINDS)}, got {', '.join(unknown)}")
    if "anatomy" not in kinds:
        raise ValueError(f"anatomy must be among the spaces, since neighbours are found in it, got {', '.join(kinds)}")
    axes = [axis for axis in range(3) if min(side for a, side in enumerate(size) if a != axis) >= 16]
    spaces: dict[str, FeatureSpace] = {}
    if "slices" in kinds:
        lite2 = EfficientNetFeatures("lite2")
        spaces |= {f"slices_{PLANES[axis]}": SliceSpace(lite2, (axis,), every) for axis in axes}
    spaces["anatomy"] = AnatomySpace()
    if "radiomics" in kinds:
        spaces["radiomics"] = RadiomicsSpace()
    if network is not None:
        spaces["network"] = NetworkSpace(network)
    if axes and "checks" in kinds:
        spaces["slices_random"] = SliceSpace(EfficientNetFeatures("lite2", seed=0), axes, every, counts=False)
        spaces["slices_lite0"] = SliceSpace(EfficientNetFeatures("lite0"), axes, every, counts=False)
    return spaces


def check_judges(spaces: Mapping[str, FeatureSpace], teachers: Sequence[nn.Module]) -> None:
    """Refuse a space that counts and whose network a loss has trained with.

    Args:
        spaces: name -> space.
        teachers: the losses' feature networks.

    Raises:
        ValueError: naming the space.
    """
    taught = [_weights(teacher) for teacher in teachers]
    for name, space in spaces.items():
        network = space.slices.features if isinstance(space, SliceSpace) else space
        if space.counts and any(_share_weights(_weights(network), one) for one in taught):
            raise ValueError(
                f"the space {name} judges with the network that the perceptual loss has trained with: take another "
                "network, or let the space not count"
            )


def _weights(network: nn.Module) -> list[Tensor]:
    return [parameter for parameter in network.parameters() if parameter.numel() > 1]


def _share_weights(one: list[Tensor], other: list[Tensor]) -> bool:
    pairs = list(zip(one, other))
    return bool(pairs) and all(a.shape == b.shape and torch.equal(a, b.to(a.device)) for a, b in pairs)
