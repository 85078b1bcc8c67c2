"""Volumes in the formats of the Insight Toolkit: NRRD and MetaImage."""

from __future__ import annotations

import os
import re

import numpy as np
import torch
from monai.data import MetaTensor
from monai.utils import ImageMetaKey

from medical_diffusion_components.preparation.segments import read_nrrd_header
from medical_diffusion_components.preparation.steps.nifti_header import IDENTITY
from medical_diffusion_components.transforms.volume_error import VolumeError

__all__ = ["check_itk_header", "read_with_itk"]

REMARKS_KEY = "remarks"
_PATIENT = ("left", "right")  # one of them begins the name of each space that is fixed to the patient
_SPACES = {"ras", "las", "lps"}
_MAX_HEADER_BYTES = 1 << 16
_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def check_itk_header(path: str | os.PathLike) -> tuple[str, ...]:
    """What the header leaves out, where ITK would take 1 mm and the usual axes for granted: remarks on it.

    Raises:
        VolumeError: no spacing is stated, or one in another unit than mm.
    """
    name = os.fspath(path)
    if name.lower().endswith((".nrrd", ".nhdr")):
        fields = read_nrrd_header(name)
        units = {unit for unit in re.findall(r'"([^"]*)"', fields.get("space units", "")) if unit not in ("", "mm")}
        if units:
            raise VolumeError(f"{name}: expected mm, the header says {', '.join(sorted(units))}: convert it to mm")
        directions = fields.get("space directions", "").lower()
        has_spacing = "spacings" in fields or (bool(directions) and not re.search("none|nan", directions))
        space = fields.get("space", "").lower()
        has_axes = "space directions" in fields and (space.startswith(_PATIENT) or space[:3] in _SPACES)
    else:
        with open(name, "rb") as file:
            head = file.read(_MAX_HEADER_BYTES).split(b"ElementDataFile")[0].decode("latin-1")
        keys = {line.partition("=")[0].strip() for line in head.splitlines()}
        has_spacing = bool(keys & {"ElementSpacing", "ElementSize"})
        has_axes = bool(keys & {"TransformMatrix", "Rotation", "Orientation"})
    if not has_spacing:
        raise VolumeError(f"{name}: the header does not say how large a voxel is: convert the scan again")
    return () if has_axes else ("orientation_unknown",)


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
        raise ImportError(
            "NRRD and MetaImage need itk: pip install itk (the extra [prepare] of this package has it)"
        ) from error
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
        # MetaImage names no cause for missing voxels: ITK then repeats an earlier error of the system
        if cause.startswith("Reason: "):
            cause = "its voxels are not there, or not all of them"
        raise VolumeError(f"{path}: cannot be read as a {what} volume of one layer: {cause}") from error
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = direction * spacing, origin
    lost = (IDENTITY,) if np.array_equal(affine, np.eye(4)) else ()
    meta = {ImageMetaKey.FILENAME_OR_OBJ: path, REMARKS_KEY: (*check_itk_header(path), *lost)}
    volume = torch.from_numpy(np.ascontiguousarray(voxels, dtype=np.float32)[None])
    return MetaTensor(volume, affine=torch.from_numpy(_TO_RAS @ affine), meta=meta)
