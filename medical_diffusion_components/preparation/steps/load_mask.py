"""Reading of a mask that was drawn on another grid than the image's, such as another series of the same visit."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import ResampleToMatch, Transform
from monai.transforms.utils import TransformBackends

from medical_diffusion_components.preparation.steps.itk_volume import read_with_itk
from medical_diffusion_components.transforms.each_volume import EachVolumed
from medical_diffusion_components.transforms.load_volume import LoadVolume
from medical_diffusion_components.transforms.volume_error import VolumeError

__all__ = ["LoadMask", "LoadMaskd"]


class LoadMask(Transform):
    """Read a NIfTI, NRRD or MetaImage mask onto an image's grid by its place in the world; what is above 0 is inside.

    Shape:
        file, (1, H, W, D) -> (1, H, W, D) of 0 and 1, a ``MetaTensor``

    Raises:
        VolumeError: the file is damaged, holds no 3D volume, or marks nothing inside the image.
    """

    backend = [TransformBackends.TORCH]

    def __init__(self) -> None:
        self.match = ResampleToMatch(mode="nearest", padding_mode="zeros", dtype=np.float32)

    def __call__(self, filename: str | os.PathLike, grid: MetaTensor) -> MetaTensor:  # type: ignore[override]  # two inputs
        """Read ``filename`` onto the grid of ``grid``."""
        name = os.fspath(filename)
        found = LoadVolume()(name) if name.lower().endswith((".nii", ".nii.gz", ".hdr")) else read_with_itk(name)
        mask = (self.match((found > 0).float(), grid) > 0.5).float()
        assert isinstance(mask, MetaTensor)
        if not bool(mask.any()):
            raise VolumeError(f"{name}: marks no voxel of the image, they may lie in different places of the world")
        return mask


class LoadMaskd(EachVolumed):
    """Dictionary form of :class:`LoadMask`, for the entries that hold file names.

    Args:
        keys: entries with the masks' files.
        grid_key: the image on whose grid they are wanted.
        allow_missing_keys: skip keys that are not there.
    """

    backend = LoadMask.backend
    array_form = LoadMask

    def __init__(self, keys: KeysCollection, grid_key: str, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys=allow_missing_keys)
        self.grid_key = grid_key

    def transformed(self, data: Mapping[Hashable, Any], key: Hashable) -> Any:
        """The mask of this file on the image's grid."""
        return self.transform(data[key], data[self.grid_key])
