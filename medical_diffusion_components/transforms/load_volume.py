"""Reading of one 3D NIfTI volume with an error that says what to do."""

from __future__ import annotations

import gzip
import os
from collections.abc import Hashable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Orientation, Transform
from monai.transforms.utils import TransformBackends
from monai.utils import ImageMetaKey, MetaKeys, SpaceKeys

from medical_diffusion_components.orientation import world_axes
from medical_diffusion_components.transforms.each_volume import EachVolumed
from medical_diffusion_components.transforms.volume_error import VolumeError

__all__ = ["LoadVolume", "LoadVolumed"]

_GZIP = b"\x1f\x8b"
_NIFTI = (b"\x5c\x01", b"\0\0", b"\x1c\x02")  # how an uncompressed header begins: its size, 348 or 540, in either order


class LoadVolume(Transform):
    """Read a 3D NIfTI file: channel first, axes as asked for, float32, affine and file name kept.

    What MONAI's ``LoadImage``, ``EnsureChannelFirst`` and ``Orientation`` do, for files that hold one volume.
    Where those three would accept a slice, a time series or a colour image, or fail with a long
    traceback, this raises one error that names the file.

    Args:
        axcodes: where H, W and D are to point in the patient; ``"RAS"`` is right, anterior, superior.

    Shape:
        file -> (1, H, W, D)

    Raises:
        ValueError: invalid ``axcodes``.
        VolumeError: the file is missing, is no NIfTI file, is damaged, does not hold a 3D volume, or has a
            singular affine.
    """

    backend = [TransformBackends.TORCH]

    def __init__(self, axcodes: str = "RAS") -> None:
        world_axes(axcodes)  # MONAI would end in an assertion, and only when called
        self.orient = Orientation(axcodes=axcodes, labels=None)

    def __call__(self, filename: str | os.PathLike) -> MetaTensor:
        """Read a ``.nii`` or ``.nii.gz`` file."""
        if not os.path.isfile(filename):
            folder = os.path.isdir(filename)
            raise VolumeError(
                f"{filename}: {'expected a NIfTI file, got a folder' if folder else 'there is no such file'}"
            )
        if not str(filename).lower().endswith((".nii", ".nii.gz", ".hdr")):
            raise VolumeError(f"{filename}: expected a NIfTI file (.nii, .nii.gz, or .hdr beside .img)")
        try:
            voxels, affine = _read(Path(filename))
        except Exception as error:  # nibabel, gzip and zlib raise a dozen kinds
            cause = _wrong_name(Path(filename)) or " ".join(str(error).split()) or type(error).__name__
            raise VolumeError(
                f"{filename}: cannot be read as a NIfTI volume, it may be damaged or incomplete: {cause}"
            ) from error
        shape = tuple(voxels.shape)
        if len(shape) > 3 and all(n == 1 for n in shape[3:]):
            voxels = voxels.reshape(shape[:3])  # a single time point is a volume
        if voxels.ndim != 3:
            kind = "a single slice" if voxels.ndim < 3 else "a time series or several channels"
            raise VolumeError(f"{filename}: expected one 3D volume, got shape {shape}: {kind}")
        if not np.isfinite(affine).all() or np.linalg.det(affine[:3, :3]) == 0:
            raise VolumeError(f"{filename}: expected an invertible affine, got {affine.tolist()}")
        meta = {
            ImageMetaKey.FILENAME_OR_OBJ: str(filename),
            MetaKeys.ORIGINAL_AFFINE: affine,
            MetaKeys.SPATIAL_SHAPE: np.array(voxels.shape),
            MetaKeys.SPACE: SpaceKeys.RAS,
        }
        # with its channel from the start: made without, MONAI's crops and pads leave D out of the affine ever after
        oriented = self.orient(MetaTensor(voxels[None], affine=torch.from_numpy(affine), meta=meta))
        return cast(MetaTensor, oriented)


class LoadVolumed(EachVolumed):
    """Dictionary form of :class:`LoadVolume`. An entry that already holds a volume (1, H, W, D), such as a generator's, is
    only turned.
    """

    backend = LoadVolume.backend
    array_form = LoadVolume

    def transformed(self, data: Mapping[Hashable, Any], key: Hashable) -> MetaTensor:
        """The volume of a file, or one that is in memory already, with its axes turned."""
        in_memory = isinstance(data[key], MetaTensor)
        return self.transform.orient(data[key]) if in_memory else self.transform(data[key])


def _wrong_name(path: Path) -> str:
    """What is wrong with the name of a file whose content is compressed and its name does not say so, or the reverse."""
    with path.open("rb") as file:
        start = file.read(2)
    ending = "".join(path.suffixes[-2:] if path.suffix.lower() == ".gz" else path.suffixes[-1:])
    if ending not in (ending.lower(), ending.upper()):  # nibabel looks for the file under one of these
        return f"its ending is in upper and lower case: rename it to {ending.lower()}"
    is_gzip, named_gzip = start == _GZIP, path.suffix.lower() == ".gz"
    if is_gzip and named_gzip:
        with suppress(Exception), gzip.open(path) as unpacked:  # why it cannot be unpacked is known
            return "it is compressed twice: unpack it once" if unpacked.read(2) == _GZIP else ""
    if is_gzip == named_gzip or (named_gzip and start not in _NIFTI):
        return ""
    return f"it {'is' if is_gzip else 'is not'} compressed: rename it to {'.nii.gz' if is_gzip else '.nii'}"


def _read(path: Path) -> tuple[torch.Tensor, np.ndarray]:
    if path.suffix.lower() == ".hdr":
        image = nib.load(path)
        if not isinstance(image, nib.Nifti1Pair):
            raise TypeError("an Analyze 7.5 header does not say where the axes point: convert it to NIfTI")
    else:
        content = path.read_bytes()
        if path.suffix.lower() == ".gz":
            # the whole stream, so that its checksum is compared: nibabel stops at the last voxel, before it
            content = gzip.decompress(content)
        image = cast(type[nib.Nifti1Image], type(nib.load(path))).from_bytes(content)
    if image.get_data_dtype().kind not in "biuf":
        raise TypeError(f"expected real numbers, got voxels of type {image.get_data_dtype()}")
    voxels = np.ascontiguousarray(image.get_fdata(dtype=np.float32))  # NIfTI counts the first axis fastest
    return torch.from_numpy(voxels), image.affine.astype(np.float64)
