"""Resampling along the voxel axes to another spacing or size, without aliasing and in little memory.

Interpolation is linear. Where the new voxels are larger than the old ones, the linear kernel is widened to their size,
so that what the new grid cannot show is averaged instead of aliased. MONAI's ``Spacing`` samples points and needs a grid
of three coordinates per voxel; here the three axes are done one after the other, which for a CT of 512 x 512 x 600
voxels takes a third of the memory.

Source: the widened triangle is the usual antialiasing of image resizing, see Heckbert, "Fundamentals of texture
mapping and image warping", University of California, Berkeley (1989), section 3.5.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Transform
from monai.transforms.utils import TransformBackends
from monai.utils import MetaKeys

from medical_diffusion_components.transforms.each_volume import EachVolumed
from medical_diffusion_components.transforms.volume_error import VolumeError, file_name, times

__all__ = ["Resample", "Resampled"]

_SLABS = 64  # along another axis: each fits into a processor's cache, and no sum needs a second volume


class Resample(Transform):
    """Put a volume on a grid of the given voxel spacing or of the given size.

    The centre of the volume and the directions of its axes stay where they are, and the affine says so. With
    ``spacing`` the volume's extent changes by less than one new voxel, since it must hold a whole number of them; with
    ``size`` the extent stays and the spacing follows. A volume of one value keeps exactly that value, bit by bit.

    Args:
        spacing: mm per voxel along H, W, D; or
        size: number of voxels along H, W, D. Exactly one of the two.
        max_voxels: refuse a result of more voxels. A header that claims a spacing of metres would ask for it.

    Shape:
        (C, H, W, D) -> (C, H', W', D'), a ``MetaTensor``

    Raises:
        VolumeError: the volume has no affine, or the result would be too large.
    """

    backend = [TransformBackends.TORCH]

    def __init__(
        self,
        spacing: Sequence[float] | None = None,
        size: Sequence[int] | None = None,
        max_voxels: int = 2**28,
    ) -> None:
        if (spacing is None) == (size is None):
            raise ValueError(f"give either spacing or size, got spacing {spacing} and size {size}")
        given: Sequence[float] = size if size is not None else spacing or ()
        if len(given) != 3 or not all(np.isfinite(value) and value > 0 for value in given):
            raise ValueError(f"expected three positive numbers along H, W, D, got {list(given)}")
        if size is not None and any(int(n) != n for n in size):
            raise ValueError(f"size must be whole numbers of voxels, got {list(size)}")
        self.spacing = None if spacing is None else tuple(float(s) for s in spacing)
        self.size = None if size is None else tuple(int(n) for n in size)
        self.max_voxels = int(max_voxels)

    def __call__(self, img: MetaTensor) -> MetaTensor:
        if not isinstance(img, MetaTensor) or img.ndim != 4:
            raise VolumeError(
                f"{file_name(img)}: expected a volume (C, H, W, D) with an affine, got {type(img).__name__}"
            )
        affine = np.asarray(img.affine, dtype=np.float64)
        before = np.array(img.shape[1:])
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        if self.size is None:
            step = np.array(self.spacing) / spacing  # new voxels, in old ones
            after = np.maximum(np.floor(before / step + 0.5), 1)
        else:
            after = np.array(self.size)
            step = before / after
        if not np.prod(after) <= self.max_voxels:
            raise VolumeError(
                f"{file_name(img)}: {times(before)} voxels of {times(spacing)} mm would become {times(after)} voxels, "
                f"more than the {self.max_voxels} allowed"
            )
        start = ((before - 1) - (after - 1) * step) / 2  # first new centre, in old voxels
        volume = img.as_tensor()
        for axis in np.argsort(after / before, kind="stable"):  # what shrinks most goes first
            centres = start[axis] + step[axis] * np.arange(int(after[axis]))
            volume = _resample_axis(volume, int(axis) + 1, centres, max(float(step[axis]), 1.0))
        change = np.eye(4)
        change[:3, :3], change[:3, 3] = np.diag(step), start
        meta = {key: value for key, value in img.meta.items() if key != MetaKeys.AFFINE}
        return MetaTensor(volume, affine=torch.from_numpy(affine @ change), meta=meta)


class Resampled(EachVolumed):
    """Dictionary form of :class:`Resample`."""

    backend = Resample.backend
    array_form = Resample


def _resample_axis(volume: torch.Tensor, axis: int, centres: np.ndarray, half_width: float) -> torch.Tensor:
    """Weighted means around ``centres`` (in voxels of ``axis``) under triangles of the given half-width."""
    count = volume.shape[axis]
    if len(centres) == count and half_width == 1 and np.allclose(centres, np.arange(count), rtol=0, atol=1e-6):
        return volume
    nearest = np.clip(np.round(centres), 0, count - 1).astype(np.int64)
    first = np.ceil(centres - half_width).astype(np.int64)
    taps = first[:, None] + np.arange(int(2 * half_width) + 1)  # (M, taps)
    weights = np.clip(1 - np.abs(taps - centres[:, None]) / half_width, 0, None)
    weights[(taps < 0) | (taps >= count)] = 0
    weights /= weights.sum(axis=1, keepdims=True)
    indices = torch.from_numpy(np.clip(taps, 0, count - 1))
    weights = torch.from_numpy(weights).to(volume.dtype)
    column = (len(centres), *[1] * (volume.ndim - 1))

    shape = list(volume.shape)
    shape[axis] = len(centres)
    result = volume.new_empty(shape)
    other = 1 if axis != 1 else 2
    for part, target in zip(volume.chunk(_SLABS, other), result.chunk(_SLABS, other)):
        rows = part.movedim(axis, 0).contiguous()  # what is taken lies in one piece: two to three times as fast
        base = rows.index_select(0, torch.from_numpy(nearest))
        mean = base.clone()
        # summed as differences from the nearest voxel, so that equal voxels give exactly their value
        for k in range(weights.shape[1]):
            difference = rows.index_select(0, indices[:, k]).sub_(base)
            mean.add_(difference.mul_(weights[:, k].reshape(column)))
        target.copy_(mean.movedim(0, axis))
    return result
