"""Reading of slices that were stored as a bare array, without spacing or orientation."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Transform
from monai.transforms.utils import TransformBackends
from monai.utils import ImageMetaKey

from medical_diffusion_components.transforms.spacing_affine import SpacingAffine
from medical_diffusion_components.transforms.volume_error import VolumeError

__all__ = ["LoadSliceStack"]


class LoadSliceStack(Transform):
    """Read a ``.npy`` file of slices, each of which is upright as on a screen: the first row is the top one.

    The file says nothing about the world, so its place there is stated here: the voxel spacing, and where the three
    axes of the result point. H runs along the columns (left to right on the screen), W along the rows from the bottom
    to the top, D along the slices. The origin of the world is the centre of the volume.

    Args:
        spacing: mm per voxel along H, W, D.
        axcodes: where H, W and D point in the patient, such as ``"PSR"`` for sagittal slices that face left: posterior,
            superior, right.

    Shape:
        file of (D, rows, columns) -> (1, H, W, D), a ``MetaTensor`` of float32

    Raises:
        ValueError: as of :class:`~medical_diffusion_components.transforms.SpacingAffine`.
        VolumeError: when called, the file is missing or damaged, or is no array of real numbers with three axes.
    """

    backend = [TransformBackends.NUMPY]

    def __init__(self, spacing: Sequence[float], axcodes: str) -> None:
        SpacingAffine(spacing, axcodes)  # refuses what it cannot attach, before a file is read
        self.spacing = tuple(float(s) for s in spacing)
        self.axcodes = axcodes

    def __call__(self, filename: str | os.PathLike) -> MetaTensor:
        """Read a ``.npy`` file."""
        if not os.path.isfile(filename):
            raise VolumeError(f"{filename}: there is no such file")
        try:
            slices = np.load(filename, mmap_mode="r", allow_pickle=False)  # the size is checked before memory is taken
        except Exception as error:  # numpy raises several kinds for damaged headers
            raise VolumeError(f"{filename}: cannot be read as an array: {' '.join(str(error).split())}") from error
        if not isinstance(slices, np.memmap) or slices.ndim != 3 or slices.dtype.kind not in "biuf":
            kind = f"{slices.shape} of {slices.dtype}" if isinstance(slices, np.ndarray) else type(slices).__name__
            raise VolumeError(f"{filename}: expected real numbers (slices, rows, columns), got {kind}")
        stored = os.path.getsize(filename)
        if slices.offset + slices.nbytes != stored:
            raise VolumeError(
                f"{filename}: {slices.shape} of {slices.dtype} end at byte {slices.offset + slices.nbytes}, the file has "
                f"{stored}: its header is damaged"
            )
        volume = np.ascontiguousarray(slices[:, ::-1].transpose(2, 1, 0), dtype=np.float32)  # (columns, rows, slices)
        placed = SpacingAffine(self.spacing, self.axcodes)(torch.from_numpy(volume[None]))
        placed.meta[ImageMetaKey.FILENAME_OR_OBJ] = str(filename)
        return placed
