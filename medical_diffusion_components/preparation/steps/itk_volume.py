"""Volumes in the formats of the Insight Toolkit: NRRD and MetaImage."""

from __future__ import annotations

import os

import numpy as np
import torch
from monai.data import MetaTensor
from monai.utils import ImageMetaKey

from medical_diffusion_components.transforms.volume_error import VolumeError

__all__ = ["read_with_itk"]

_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def read_with_itk(path: str | os.PathLike) -> MetaTensor:
    """Read a 3D file of one layer (``.nrrd``, ``.nhdr``, ``.mha``, ``.mhd``).

    Shape:
        file -> (1, x, y, z) of float32, with an affine in RAS

    Raises:
        ImportError: itk is not installed.
        VolumeError: the file is damaged, or no volume of one layer.
    """
    path = os.fspath(path)
    try:
        import itk
    except ImportError as error:
        raise ImportError("NRRD and MetaImage need itk: pip install 'medical-diffusion-bundles[prepare]'") from error
    is_nrrd = path.lower().endswith((".nrrd", ".nhdr"))
    what = "NRRD" if is_nrrd else "MetaImage"
    try:
        header = (itk.NrrdImageIO if is_nrrd else itk.MetaImageIO).New(FileName=path)
        header.ReadImageInformation()
        layout = (header.GetNumberOfDimensions(), header.GetNumberOfComponents())
        if layout != (3, 1):
            raise ValueError(f"{layout[0]} dimensions, {layout[1]} layers")
        image = itk.imread(path, itk.F, imageio=header)
        voxels = np.asarray(itk.array_from_image(image)).T  # (x, y, z)
        direction = np.asarray(itk.array_from_matrix(image.GetDirection()))
        spacing, origin = np.asarray(image.GetSpacing()), np.asarray(image.GetOrigin())
    except Exception as error:  # ITK's messages run over many lines
        cause = str(error).splitlines()[-1] if str(error) else type(error).__name__
        raise VolumeError(f"{path}: cannot be read as a {what} volume of one layer: {cause}") from error
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = direction * spacing, origin
    meta = {ImageMetaKey.FILENAME_OR_OBJ: path}
    volume = torch.from_numpy(np.ascontiguousarray(voxels, dtype=np.float32)[None])
    return MetaTensor(volume, affine=torch.from_numpy(_TO_RAS @ affine), meta=meta)
