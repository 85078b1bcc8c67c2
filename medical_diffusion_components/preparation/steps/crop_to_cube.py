"""Crop to the foreground and pad to a cube, so that ``Resized`` after it changes no proportions.

The three together are the paper's preparation of brain volumes.

Source: Khader et al., "Denoising diffusion probabilistic models for 3D medical image generation",
Scientific Reports 13, 7303 (2023): crop to the brain's bounding box, pad to a cube, resize to 64^3.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import CropForeground, MapTransform, SpatialPad, Transform
from monai.transforms.utils import TransformBackends

from medical_diffusion_components.preparation.steps.body_mask import large_objects
from medical_diffusion_components.transforms.volume_error import NamesItsFailure, VolumeError, file_name

__all__ = ["CropToCube", "CropToCubed"]

_SHARED = 0.1  # of the voxels: as many have exactly one value only where it was written there
_SAMPLE = 10_000
_SPECK = 1e-3  # of the largest object's size


class CropToCube(Transform):
    """Cut out the foreground's bounding box and pad it on both sides to a cube with the background.

    The cube has as many voxels on every axis; where voxels are not isotropic, put ``Spacingd`` before it. The
    affine follows, so every voxel keeps its place in the world.

    The background is the value that a tenth of the voxels or more share exactly, as in images without skull, and else
    the lowest intensity; a few voxels below it, which resampling with splines leaves, change nothing. Specks of less than a
    thousandth of the largest object are no foreground.

    Args:
        threshold: foreground is what lies above this share of the way from the background to the highest
            intensity, in [0, 1). 0 suits images whose background is one value; a noisy one needs more.
        margin: voxels to keep around the bounding box.

    Shape:
        (C, H, W, D) -> (C, N, N, N), N the longest side of the box with its margin

    Raises:
        VolumeError: no voxel is foreground.
    """

    backend = [TransformBackends.TORCH]

    def __init__(self, threshold: float = 0.0, margin: int = 0) -> None:
        if not 0 <= threshold < 1:
            raise ValueError(f"threshold is a share of the intensity range in [0, 1), got {threshold}")
        if margin < 0:
            raise ValueError(f"margin is a number of voxels, got {margin}")
        self.threshold = threshold
        self.crop = CropForeground(select_fn=self._foreground, margin=margin)

    def __call__(self, img: torch.Tensor) -> torch.Tensor:
        return self.crop_like(img, img)

    def crop_like(self, img: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        """Cut ``img`` where ``source``, a volume on the same grid, has its foreground."""
        if img.shape[1:] != source.shape[1:]:
            raise VolumeError(
                f"{file_name(img)}: expected the size of {file_name(source)}, {tuple(source.shape[1:])}, "
                f"got {tuple(img.shape[1:])}"
            )
        if not bool(self._foreground(source).any()):
            low, high = float(source.min()), float(source.max())
            found = (
                f"nothing is brighter than {_background(source):g}, the least is {low:g}: are light and dark exchanged?"
            )
            raise VolumeError(
                f"{file_name(source)}: no foreground, {f'every voxel is {low:g}' if low == high else found}"
            )
        start, end = self.crop.compute_bounding_box(source)
        background = _background(img)
        box = self.crop.crop_pad(img, np.asarray(start), np.asarray(end), value=background)
        return SpatialPad(spatial_size=max(box.shape[1:]))(box, value=background)

    def _foreground(self, img: torch.Tensor) -> torch.Tensor:
        low, high = _background(img), float(img.max())
        bright = torch.as_tensor(img) > low + self.threshold * (high - low)
        return torch.from_numpy(large_objects(np.asarray(bright[0]), _SPECK))[None]


def _background(img: torch.Tensor) -> float:
    """The value that a tenth of the voxels share, if one does, else the lowest."""
    voxels = torch.as_tensor(img)
    # a value that a tenth share is found among a thousand voxels: the chance to miss it is 1e-46
    sample = voxels.flatten()[:: max(1, voxels.numel() // _SAMPLE)]
    values, counts = sample.unique(return_counts=True)
    commonest = values[counts.argmax()]
    share = float((voxels == commonest).float().mean())
    is_low = float(commonest) <= float(sample.float().median())
    return float(commonest) if share >= _SHARED and is_low else float(voxels.min())


class CropToCubed(NamesItsFailure, MapTransform):
    """Dictionary form of :class:`CropToCube`.

    Args:
        keys: volumes to cut.
        source_key: the volume whose foreground decides for all keys, as for an image and its label map; None
            lets each decide for itself.
        threshold: see :class:`CropToCube`.
        margin: see :class:`CropToCube`.
        allow_missing_keys: skip keys that are not there.
    """

    backend = CropToCube.backend

    def __init__(
        self,
        keys: KeysCollection,
        source_key: str | None = None,
        threshold: float = 0.0,
        margin: int = 0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.source_key = source_key
        self.crop = CropToCube(threshold, margin)

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        cropped = dict(data)
        for key in self.key_iterator(cropped):
            source = data[key if self.source_key is None else self.source_key]
            with self.remembering_failure():
                cropped[key] = self.crop.crop_like(data[key], source)
        return cropped
