"""The gate before a network: a volume that it was not made for stops the run and is named."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.data import MetaTensor
from monai.transforms import Transform
from monai.transforms.utils import TransformBackends

from medical_diffusion_components.transforms.each_volume import EachVolumed
from medical_diffusion_components.transforms.volume_error import VolumeError, file_name, times

__all__ = ["CheckVolume", "CheckVolumed"]

SPACING_RANGE = (0.01, 100.0)  # mm; what prepare believes by default, too


class CheckVolume(Transform):
    """Return a volume as it came, or raise.

    Args:
        spatial_size: expected (H, W, D), or None for any.
        num_channels: expected number of channels.
        value_range: lowest and highest intensity allowed, give or take 1e-3 of the range; None for any.
        allow_constant: accept a volume of one value, as a label map without foreground is.
        min_size: least (H, W, D), such as that of a network's window, or None for any.

    Shape:
        (C, H, W, D) -> (C, H, W, D)

    Raises:
        VolumeError: not three spatial dimensions, another number of channels, another or too small a size, voxels that
            are not finite, one value throughout, intensities out of range, or voxels of a size that no scan has.
    """

    backend = [TransformBackends.TORCH]

    def __init__(
        self,
        spatial_size: Sequence[int] | None = None,
        num_channels: int = 1,
        value_range: Sequence[float] | None = None,
        allow_constant: bool = False,
        min_size: Sequence[int] | None = None,
    ) -> None:
        self.spatial_size = None if spatial_size is None else tuple(int(n) for n in spatial_size)
        self.num_channels = num_channels
        self.value_range = None if value_range is None else (float(value_range[0]), float(value_range[1]))
        self.allow_constant = allow_constant
        self.min_size = None if min_size is None else tuple(int(n) for n in min_size)

    def __call__(self, img: torch.Tensor) -> torch.Tensor:
        problem = self._shape_problem(tuple(img.shape)) or self._grid_problem(img) or self._intensity_problem(img)
        if problem:
            raise VolumeError(f"{file_name(img)}: {problem}")
        return img

    def _shape_problem(self, shape: tuple[int, ...]) -> str | None:
        if len(shape) != 4:
            return f"expected a 3D volume (C, H, W, D), got shape {shape}"
        if shape[0] != self.num_channels:
            return f"expected {self.num_channels} channel(s), got {shape[0]}: shape {shape} is (C, H, W, D)"
        if self.spatial_size is not None and shape[1:] != self.spatial_size:
            return (
                f"expected {times(self.spatial_size)} voxels, got {times(shape[1:])}: run the bundle's "
                f"`prepare` to bring the images to that size, or set --image_size to theirs"
            )
        if self.min_size is not None and any(n < least for n, least in zip(shape[1:], self.min_size)):
            return f"expected at least {times(self.min_size)} voxels, got {times(shape[1:])}"
        return None

    @staticmethod
    def _grid_problem(img: torch.Tensor) -> str | None:
        sizes = torch.linalg.vector_norm(img.affine[:3, :3], dim=0).tolist() if isinstance(img, MetaTensor) else [1.0]
        if min(sizes) >= SPACING_RANGE[0] and max(sizes) <= SPACING_RANGE[1]:
            return None
        found = " x ".join(f"{size:.4g}" for size in sizes)
        return f"expected voxels of 0.01 to 100 mm, got {found} mm: is its header in metres or micrometres?"

    def _intensity_problem(self, img: torch.Tensor) -> str | None:
        if img.numel() == 0:
            return f"the volume is empty: shape {tuple(img.shape)}"
        finite = torch.isfinite(img)
        if not bool(finite.all()):
            bad = int((~finite).sum())
            return f"expected finite intensities, got {bad} of {img.numel()} voxels that are NaN or infinite"
        low, high = float(img.min()), float(img.max())
        if low == high and not self.allow_constant:
            return f"every voxel is {low:g}: the volume holds no image"
        if self.value_range is not None:
            floor, ceiling = self.value_range
            slack = 1e-3 * (ceiling - floor)
            if low < floor - slack or high > ceiling + slack:
                return f"expected intensities in [{floor:g}, {ceiling:g}], got [{low:g}, {high:g}]"
        return None


class CheckVolumed(EachVolumed):
    """Dictionary form of :class:`CheckVolume`; the other arguments are those of that class."""

    backend = CheckVolume.backend
    array_form = CheckVolume
