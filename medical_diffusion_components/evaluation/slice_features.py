"""Features of volumes from a network for images.

Where no network for the volumes themselves is at hand, every few slices across each axis go through one for images, and
its maps are averaged over positions, as for the kernel inception distance (Binkowski et al., ICLR 2018), and over slices.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medical_diffusion_components.transforms.volume_error import times

__all__ = ["SliceFeatures"]


class SliceFeatures(nn.Module):
    """Mean over slices and positions of each channel, for slices across H, W and D.

    Args:
        features: network that turns images (B, C, h, w) in [-1, 1] into a list of maps; ``EfficientNetLite0Features``.
        every: distance of two slices in voxels; the first is half of it from the border.
        axes: of the volume's three, those across which to cut: 0, 1, 2 for H, W, D.
        smallest: shortest side of a slice that the network takes, in voxels.
        background: slices that are nowhere brighter than this do not count, unless all are; None counts every slice.

    Shape:
        (B, C, H, W, D) in [-1, 1] -> (B, F), F the number of channels of all maps times the number of axes

    Raises:
        ValueError: no axes or others than 0, 1, 2, a distance below 1, no volume, or one whose slices are too small.
    """

    def __init__(
        self,
        features: nn.Module,
        every: int = 4,
        axes: tuple[int, ...] = (0, 1, 2),
        smallest: int = 16,
        background: float | None = None,
    ) -> None:
        super().__init__()
        if every < 1 or not axes or not set(axes) <= {0, 1, 2}:
            raise ValueError(f"expected a distance of 1 or more and axes among 0, 1, 2; got {every} and {list(axes)}")
        self.features = features
        self.every = int(every)
        self.axes = tuple(axes)
        self.smallest = int(smallest)
        self.background = background

    @torch.no_grad()
    def forward(self, volumes: Tensor) -> Tensor:
        if volumes.ndim != 5:
            raise ValueError(f"expected volumes (B, C, H, W, D), got shape {tuple(volumes.shape)}")
        return torch.cat([self._across(volumes, axis) for axis in self.axes], dim=1)

    def _across(self, volumes: Tensor, axis: int) -> Tensor:
        first = min(self.every // 2, volumes.shape[axis + 2] - 1)
        slices = volumes.movedim(axis + 2, 1)[:, first :: self.every]  # (B, slices, C, h, w)
        if min(slices.shape[3:]) < self.smallest:
            sides = times(slices.shape[3:])
            raise ValueError(
                f"slices across axis {axis} have {sides} voxels, the network wants {self.smallest}: leave it out"
            )
        maps = self.features(slices.flatten(0, 1))
        means = [values.float().mean(dim=(2, 3)).unflatten(0, slices.shape[:2]) for values in maps]
        share = self._shares(slices)[:, :, None]
        return torch.cat([(values * share).sum(dim=1) for values in means], dim=1)

    def _shares(self, slices: Tensor) -> Tensor:
        """Weight of each slice in the mean, (B, slices)."""
        counts = torch.ones(slices.shape[:2], device=slices.device)
        if self.background is not None:
            full = (slices.flatten(2).amax(dim=2) > self.background).float()
            counts = torch.where(full.sum(dim=1, keepdim=True) > 0, full, counts)
        return counts / counts.sum(dim=1, keepdim=True)
