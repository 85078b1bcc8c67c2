"""What a NIfTI header says twice, or not at all: the two transforms to millimetres, and the unit.

Source: Cox et al., "A (sort of) new image data format standard: NIfTI-1" (2004), the comments of ``nifti1.h``: method 2
(qform) and method 3 (sform).
"""

from __future__ import annotations

import itertools
from typing import Literal, NamedTuple, cast

import nibabel as nib
import numpy as np

from medical_diffusion_components.transforms.volume_error import VolumeError

__all__ = ["IDENTITY", "NiftiHeader", "check_nifti_header"]

IDENTITY = "identity_affine"  # the remark on a header such as programs write where none is given to them
_ALLOWED = 0.01  # of a voxel, at the corners of the volume
_SPACING = 0.01  # by which the sizes of voxels may differ that a header states twice
_STATISTICS = range(2, 25)  # intent codes of the values of a test
_UNITS = {0: "unknown", 1: "meter", 2: "mm", 3: "micron"}
_MILLIMETRES = {"mm": 1.0, "unknown": 1.0, "meter": 1000.0, "micron": 0.001}


class NiftiHeader(NamedTuple):
    """``affine`` is None where the one that nibabel takes is right; ``remarks`` name what a person should know."""

    affine: np.ndarray | None
    remarks: tuple[str, ...]


def check_nifti_header(
    path: str, affine_from: Literal["refuse", "sform", "qform"] = "refuse", image: nib.Nifti1Pair | None = None
) -> NiftiHeader:
    """Compare the two transforms, and bring the unit to millimetres.

    Args:
        path: the file.
        affine_from: which transform to take where they differ.
        image: the file as nibabel has loaded it, if it has.

    Raises:
        VolumeError: both transforms are set, differ by more than 1 % of a voxel, and ``affine_from`` is ``"refuse"``; the
            sform stands alone, and its voxels are not of the sizes in ``pixdim``, unless ``affine_from`` is ``"sform"``;
            or the unit has a code that the standard does not know.
    """
    image = cast(nib.Nifti1Pair, nib.load(path)) if image is None else image
    header = image.header
    affine, remarks = image.affine, []
    qform, sform = header.get_qform(coded=True)[0], header.get_sform(coded=True)[0]
    if qform is None and sform is None:
        remarks.append("orientation_unknown")
    elif qform is not None and sform is not None:
        apart = _largest_distance(qform, sform, image.shape[:3])
        if apart > _ALLOWED:
            if affine_from == "refuse":
                raise VolumeError(
                    f"{path}: sform and qform put the corners of the volume up to {apart:.3g} voxels apart "
                    f"(voxels of {_sizes(sform)} and {_sizes(qform)} mm): say which is right with --affine_from sform or "
                    "--affine_from qform"
                )
            affine = sform if affine_from == "sform" else qform
            remarks.append(f"affine_from_{affine_from}")
    elif sform is not None:
        _compare_spacing(path, sform, np.abs(np.asarray(header["pixdim"][1:4], dtype=float)), affine_from, remarks)
    if not remarks and np.array_equal(np.abs(affine), np.eye(4)):  # of nibabel, or of ITK
        remarks.append(IDENTITY)
    code = int(header["xyzt_units"]) % 8
    if code not in _UNITS:
        raise VolumeError(f"{path}: expected a unit of length (0 to 3) in xyzt_units, got {code}: mend the header")
    scale = _MILLIMETRES[_UNITS[code]]
    if scale != 1:
        affine = np.diag([scale, scale, scale, 1]) @ affine
        remarks.append("unit_not_millimetres")
    if not np.isfinite(_stored_slope(image)):
        remarks.append("slope_not_a_number")
    if int(header["intent_code"]) in _STATISTICS:
        remarks.append("statistical_map")
    return NiftiHeader(None if np.array_equal(affine, image.affine) else affine.astype(np.float64), tuple(remarks))


def _stored_slope(image: nib.Nifti1Pair) -> float:
    """The slope as it stands in the file; of an image that it has loaded nibabel forgets it."""
    place = image.file_map.get("header", image.file_map["image"])
    with place.get_prepare_fileobj("rb") as file:
        return float(type(image.header).from_fileobj(file, check=False)["scl_slope"])


def _compare_spacing(path: str, sform: np.ndarray, stated: np.ndarray, affine_from: str, remarks: list[str]) -> None:
    """Refuse a file that states two sizes of its voxels, or say in ``remarks`` that one was believed."""
    sizes = nib.affines.voxel_sizes(sform)
    if (np.abs(stated - sizes) <= _SPACING * sizes).all() or not stated.any():  # nothing stated is no contradiction
        return
    if affine_from != "sform":
        numbers = " x ".join(f"{size:.4g}" for size in stated)
        raise VolumeError(
            f"{path}: the sform has voxels of {_sizes(sform)} mm, the sizes in the header (pixdim) are {numbers} mm: mend "
            "the header, or believe the sform with --affine_from sform"
        )
    remarks.append("affine_from_sform")


def _largest_distance(one: np.ndarray, other: np.ndarray, shape: tuple[int, ...]) -> float:
    """Between the places that two affines give to the corners, in voxels of the smaller spacing."""
    corners = np.array([(*corner, 1.0) for corner in itertools.product(*((0, n - 1) for n in shape))])
    distance = np.linalg.norm((corners @ (one - other).T)[:, :3], axis=1).max()
    sizes = np.concatenate([nib.affines.voxel_sizes(affine) for affine in (one, other)])
    return float(distance / max(sizes.min(), 1e-12))


def _sizes(affine: np.ndarray) -> str:
    return " x ".join(f"{size:.4g}" for size in nib.affines.voxel_sizes(affine))
