"""What the header of a scan says, and whether `prepare` would refuse it for that; voxels are not read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import nibabel as nib
import numpy as np

from medical_diffusion_components.dicom.refusal import SeriesRefused
from medical_diffusion_components.orientation import world_axes
from medical_diffusion_components.preparation.case_ids import without_uids
from medical_diffusion_components.preparation.inventory import RawCase
from medical_diffusion_components.preparation.steps.itk_volume import check_itk_header
from medical_diffusion_components.preparation.steps.load_scan import LoadScan, acquisition_plane, check_file
from medical_diffusion_components.preparation.steps.nifti_header import check_nifti_header
from medical_diffusion_components.transforms.volume_error import VolumeError

__all__ = ["ScanFacts", "on_ras_axes", "read_facts", "without_identifiers"]

_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_NO_PLANE = "none"  # voxels about as long each way


class ScanFacts(NamedTuple):
    """A scan by its header.

    Attributes:
        case_id: as `prepare` calls it.
        kind: ``"NIfTI"``, ``"DICOM"``, ``"NRRD"``, ``"MetaImage"`` or ``"array"``.
        shape: voxels to the right, to the front and up, or None where the header cannot be read.
        spacing: mm along the same axes.
        orientation: where the axes point as they are stored, such as ``"LPS"``.
        plane: of slices thicker than their pixels; ``"none"`` for voxels about as long each way.
        modality: of DICOM; empty for other formats.
        remarks: what `prepare` would remark on.
        refused: why `prepare` would refuse the scan; empty if it would not.
    """

    case_id: str
    kind: str
    shape: tuple[int, int, int] | None = None
    spacing: tuple[float, float, float] | None = None
    orientation: str = ""
    plane: str = ""
    modality: str = ""
    remarks: tuple[str, ...] = ()
    refused: str = ""

    @property
    def voxels(self) -> int:
        """Number of voxels; 0 where it is not known."""
        return int(np.prod(self.shape)) if self.shape else 0

    def as_dict(self) -> Mapping[str, Any]:
        """For JSON."""
        return {key: value for key, value in self._asdict().items() if value not in ("", (), None)}


class _Grid(NamedTuple):
    shape: tuple[int, ...]
    affine: np.ndarray
    modality: str = ""
    remarks: tuple[str, ...] = ()
    refused: str = ""


def read_facts(case: RawCase, load: LoadScan, raw_dir: Path) -> ScanFacts:
    """Read a case's header and check it as ``load`` would.

    Args:
        case: a case with a scan.
        load: the reader of `prepare`, with its settings.
        raw_dir: left out of messages.
    """
    kind = _kind(case)
    facts = ScanFacts(case.case_id, kind)
    refused = ""
    try:
        check_file(case.found.path)
        grid = _READERS[kind](case, load)
        facts = facts._replace(modality=grid.modality, remarks=grid.remarks)
        if len(grid.shape) != 3:
            kind = "a single slice" if len(grid.shape) < 3 else "a time series or several channels"
            raise VolumeError(f"{case.found.path}: expected one 3D volume, got shape {grid.shape}: {kind}")
        facts = facts._replace(**_placed(grid))
        refused = grid.refused
        load.check_header(case.found.path, grid.shape, grid.affine)
    except ImportError:
        raise
    except Exception as error:  # a damaged header raises one of dozens of kinds
        refused = refused or (error.text if isinstance(error, SeriesRefused) else str(error)) or type(error).__name__
    return facts._replace(refused=without_identifiers(refused, raw_dir))


def without_identifiers(text: str, raw_dir: Path) -> str:
    """A message without UIDs of DICOM headers and without the folder's own path."""
    text = text.replace(f"{str(raw_dir).rstrip(os.sep)}{os.sep}", "")
    return " ".join(without_uids(text).split())[:400]


def on_ras_axes(values: tuple, axcodes: str) -> tuple:
    """Values along axes that point as ``axcodes`` says, in the order right, anterior, superior."""
    ordered: list[Any] = [None] * 3
    for (axis, _), value in zip(world_axes(axcodes), values):
        ordered[axis] = value
    return tuple(ordered)


def _placed(grid: _Grid) -> dict[str, Any]:
    """The fields that follow from the affine; those of an impossible one are left out."""
    spacing = np.linalg.norm(grid.affine[:3, :3], axis=0)
    if not (np.isfinite(spacing).all() and (spacing > 0).all() and np.isfinite(grid.affine).all()):
        return {"shape": tuple(int(n) for n in grid.shape)}
    axcodes = "".join(code or "?" for code in nib.aff2axcodes(grid.affine))
    if "?" in axcodes:
        return {"shape": tuple(int(n) for n in grid.shape)}
    return {
        "shape": on_ras_axes(tuple(int(n) for n in grid.shape), axcodes),
        "spacing": on_ras_axes(tuple(float(f"{s:.5g}") for s in spacing), axcodes),
        "orientation": axcodes,
        "plane": acquisition_plane(grid.affine) or _NO_PLANE,
    }


def _kind(case: RawCase) -> str:
    name = case.found.path.lower()
    if case.found.files or os.path.isdir(case.found.path):
        return "DICOM"
    if name.endswith(".npy"):
        return "array"
    if name.endswith((".nrrd", ".nhdr")):
        return "NRRD"
    return "MetaImage" if name.endswith((".mha", ".mhd")) else "NIfTI"


def _nifti_grid(case: RawCase, load: LoadScan) -> _Grid:
    image = cast(nib.Nifti1Pair, nib.load(case.found.path))
    shape = tuple(image.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    try:
        header = check_nifti_header(case.found.path, load.affine_from, image)
    except VolumeError as error:
        return _Grid(shape, np.asarray(image.affine), refused=str(error))
    affine = image.affine if header.affine is None else header.affine
    return _Grid(shape, np.asarray(affine), remarks=header.remarks)


def _dicom_grid(case: RawCase, load: LoadScan) -> _Grid:
    from medical_diffusion_components.dicom import series  # pydicom is an extra, and only DICOM needs it

    scan = case.found
    groups = series.find_series(scan.path, [Path(file) for file in scan.files] or None)
    group = series.select_series(groups, scan.series_uid, load.echo_time, None, scan.num_images)
    stack = series.check_group(group)
    wrong = load.modality not in (None, group.modality)
    return _Grid(
        (group.columns, group.rows, len(group.slices)),
        np.asarray(stack.affine),
        group.modality or "",
        remarks=group.remarks,
        refused=f"expected modality {load.modality}, got {group.modality}" if wrong else "",
    )


def _itk_grid(case: RawCase, load: LoadScan) -> _Grid:
    import itk

    path = case.found.path
    is_nrrd = path.lower().endswith((".nrrd", ".nhdr"))
    header = (itk.NrrdImageIO if is_nrrd else itk.MetaImageIO).New(FileName=path)
    try:
        header.ReadImageInformation()
    except RuntimeError as error:  # in many lines, of which the first name ITK's own files
        raise VolumeError(f"{path}: cannot be read: {str(error).splitlines()[-1]}") from error
    axes = range(header.GetNumberOfDimensions())
    shape = tuple(int(header.GetDimensions(axis)) for axis in axes)
    if len(shape) != 3 or header.GetNumberOfComponents() != 1:
        layers = header.GetNumberOfComponents()
        return _Grid(
            shape, np.eye(4), refused=f"{path}: expected 3 dimensions and 1 layer, got {len(shape)} and {layers}"
        )
    affine = np.eye(4)
    for axis in axes:
        affine[:3, axis] = np.asarray(header.GetDirection(axis)) * header.GetSpacing(axis)
        affine[axis, 3] = header.GetOrigin(axis)
    return _Grid(shape, _TO_RAS @ affine, remarks=check_itk_header(path))


def _array_grid(case: RawCase, load: LoadScan) -> _Grid:
    if load.slice_stack is None:
        text = f"{case.found.path}: expected NIfTI or DICOM, got an array without spacing and orientation"
        return _Grid(tuple(np.load(case.found.path, mmap_mode="r").shape), np.eye(4), refused=text)
    volume = load.slice_stack(case.found.path)
    return _Grid(tuple(volume.shape[1:]), np.asarray(volume.affine))


_READERS = {
    "NIfTI": _nifti_grid,
    "DICOM": _dicom_grid,
    "NRRD": _itk_grid,
    "MetaImage": _itk_grid,
    "array": _array_grid,
}
