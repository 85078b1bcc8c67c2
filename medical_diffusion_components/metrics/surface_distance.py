"""Distances between the surfaces of predicted and drawn structures, in mm.

MONAI's metrics with the voxel spacing of each case. Definitions and pitfalls: Reinke et al., "Understanding metric-related
pitfalls in image analysis validation", Nature Methods 21, 2024.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.metrics import CumulativeIterationMetric, HausdorffDistanceMetric, SurfaceDistanceMetric
from monai.utils import convert_to_tensor
from torch import Tensor

__all__ = ["SpacedHausdorffDistance", "SpacedSurfaceDistance"]


class _InMillimetres(CumulativeIterationMetric):
    """For one of MONAI's distances: with the spacing of the label, and none (NaN) where MONAI's is infinite."""

    def _compute_tensor(self, y_pred: Tensor, y: Tensor, **kwargs: Any) -> Tensor:  # type: ignore[override]
        if not isinstance(y, MetaTensor):
            raise ValueError("distances in mm need the label's affine: keep it a MetaTensor")
        affines = np.asarray(y.affine, dtype=np.float64).reshape(-1, 4, 4)
        spacing = np.linalg.norm(affines[0, :3, :3], axis=0).tolist()
        if not np.allclose(np.linalg.norm(affines[:, :3, :3], axis=1), spacing):
            raise ValueError("cases of different voxel spacing in one batch: set the batch size of the evaluation to 1")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about empty structures
            pred, label = convert_to_tensor(y_pred), convert_to_tensor(y)  # without MONAI's metadata
            distances: Any = super()._compute_tensor(pred, label, spacing=spacing, **kwargs)  # type: ignore[safe-super]
        return torch.where(torch.isinf(distances), torch.nan, distances)

    def aggregate(self, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor, Tensor]:
        """Mean over all structures that have a distance; NaN if none has, where MONAI would say 0."""
        found = self.get_buffer()
        none = torch.is_tensor(found) and not bool(torch.isfinite(found).any())
        return torch.tensor(torch.nan) if none else super().aggregate(*args, **kwargs)  # type: ignore[safe-super]


class SpacedSurfaceDistance(_InMillimetres, SurfaceDistanceMetric):
    """Mean distance between the two surfaces, both ways, in mm.

    The spacing is that of the label's affine. A structure that was missed has no distance (NaN): MONAI gives infinity for
    an empty prediction, and a single one would make every mean infinite. Whoever reports the distance reports the missed
    structures beside it.

    Shape:
        one-hot prediction and label (B, C, H, W, D) -> (B, C - 1), without the background

    Raises:
        ValueError: a label without affine, whose voxels could have any size, or cases of different spacing in one batch.
    """

    def __init__(self) -> None:
        super().__init__(include_background=False, symmetric=True)


class SpacedHausdorffDistance(_InMillimetres, HausdorffDistanceMetric):
    """Hausdorff distance in mm, with spacing and missed structures as for :class:`SpacedSurfaceDistance`.

    Args:
        percentile: of the distances, instead of their maximum; 95 is customary.
    """

    def __init__(self, percentile: float = 95.0) -> None:
        super().__init__(include_background=False, percentile=percentile)
