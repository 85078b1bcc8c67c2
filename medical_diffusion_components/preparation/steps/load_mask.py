"""Reading of a mask that was drawn on another grid than the image's, such as another series of the same visit."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, ResampleToMatch, Transform
from monai.transforms.utils import TransformBackends
from monai.utils import ImageMetaKey

from medical_diffusion_components.transforms.load_volume import LoadVolume
from medical_diffusion_components.transforms.volume_error import NamesItsFailure, VolumeError

__all__ = ["LoadMask", "LoadMaskd"]

_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


class LoadMask(Transform):
    """Read a NIfTI or NRRD mask onto an image's grid by their places in the world; whatever is above 0 is inside.

    Shape:
        file, (1, H, W, D) -> (1, H, W, D) of 0 and 1, a ``MetaTensor``

    Raises:
        VolumeError: the file is damaged, holds no 3D volume, or marks nothing inside the image.
    """

    backend = [TransformBackends.TORCH]

    def __init__(self) -> None:
        self.match = ResampleToMatch(mode="nearest", padding_mode="zeros", dtype=np.float32)

    def __call__(self, filename: str | os.PathLike, grid: MetaTensor) -> MetaTensor:
        """Read ``filename`` onto the grid of ``grid``."""
        name = os.fspath(filename)
        mask = _read_nrrd(name) if name.endswith(".nrrd") else LoadVolume()(name)
        mask = self.match((mask > 0).float(), grid)
        mask = (mask > 0.5).float()
        if not bool(mask.any()):
            raise VolumeError(f"{name}: marks no voxel of the image, they may lie in different places of the world")
        return mask


class LoadMaskd(NamesItsFailure, MapTransform):
    """Dictionary form of :class:`LoadMask`, for the entries that hold file names.

    Args:
        keys: entries with the masks' files.
        grid_key: the image on whose grid they are wanted.
        allow_missing_keys: skip keys that are not there.
    """

    backend = LoadMask.backend

    def __init__(self, keys: KeysCollection, grid_key: str, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.grid_key = grid_key
        self.load = LoadMask()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        data = dict(data)
        for key in self.key_iterator(data):
            with self.remembering_failure():
                data[key] = self.load(data[key], data[self.grid_key])
        return data


def _read_nrrd(path: str) -> MetaTensor:
    try:
        import itk
    except ImportError as error:
        raise ImportError("NRRD masks need itk: pip install 'medical-diffusion-bundles[prepare]'") from error
    try:
        header = itk.NrrdImageIO.New(FileName=path)
        header.ReadImageInformation()
        layout = (header.GetNumberOfDimensions(), header.GetNumberOfComponents())
        if layout != (3, 1):
            raise ValueError(f"{layout[0]} dimensions, {layout[1]} layers")
        image = itk.imread(path, itk.F, imageio=header)
        voxels = np.asarray(itk.array_from_image(image)).T  # (x, y, z)
        direction = np.asarray(itk.array_from_matrix(image.GetDirection()))
        spacing, origin = np.asarray(image.GetSpacing()), np.asarray(image.GetOrigin())
    except Exception as error:  # ITK's messages run over many lines
        what = str(error).splitlines()[-1] if str(error) else type(error).__name__
        raise VolumeError(f"{path}: cannot be read as a NRRD volume of one layer: {what}") from error
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = direction * spacing, origin
    meta = {ImageMetaKey.FILENAME_OR_OBJ: path}
    volume = torch.from_numpy(np.ascontiguousarray(voxels, dtype=np.float32)[None])
    return MetaTensor(volume, affine=torch.from_numpy(_TO_RAS @ affine), meta=meta)
