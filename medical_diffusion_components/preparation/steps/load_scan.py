"""Reading of one raw scan, whatever it was stored as: NIfTI, a DICOM series, or a bare array of slices."""

from __future__ import annotations

import gzip
import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Orientation, Transform
from monai.transforms.utils import TransformBackends
from monai.utils import ImageMetaKey, MetaKeys
from nibabel.spatialimages import SpatialImage

from medical_diffusion_components.preparation.formats import why_no_volume
from medical_diffusion_components.preparation.steps.itk_volume import REMARKS_KEY, read_with_itk
from medical_diffusion_components.preparation.steps.load_slice_stack import LoadSliceStack
from medical_diffusion_components.preparation.steps.nifti_header import check_nifti_header
from medical_diffusion_components.preparation.steps.notes import add_note
from medical_diffusion_components.transforms.load_volume import LoadVolume
from medical_diffusion_components.transforms.volume_error import NamesItsFailure, VolumeError

__all__ = ["LoadScan", "LoadScand", "RawScan", "check_file"]

PADDING_KEY, PADDING_LIMIT_KEY = "padding_value", "padding_limit"
_PLANES = ("sagittal", "coronal", "axial")  # their slices follow one another to the right, to the front, upwards
_MIN_SLICES = 3
_OBLIQUE = 30.0  # degrees: at 45 two planes are as near
_THICK = 1.5  # times the next spacing: slices that are thicker have a plane
_BLOCK = 1 << 20
_SMALLEST_SPACING = 1e-4  # mm


class RawScan(NamedTuple):
    """Where a scan lies: a file of a volume, or the folder of a DICOM series.

    ``series_uid`` and ``num_images`` say which series of the folder, and how many slices a whole download has. ``files``
    are the series' slices and what lies beside them; without, all of the folder is searched.
    """

    path: str
    series_uid: str | None = None
    num_images: int | None = None
    files: tuple[str, ...] = ()


class LoadScan(Transform):
    """Read a scan into voxels whose axes point as asked for, with a true affine.

    DICOM becomes real units (Hounsfield units for CT). What the header says to lie outside the scanner's field of view
    is left as it is and named in ``meta["padding_value"]``.

    Args:
        axcodes: where H, W and D point in the patient; ``"RAS"`` is right, anterior, superior.
        modality: expected DICOM modality, such as ``"CT"``; None for any.
        echo_time: which echo of a DICOM series that has several, in ms, or ``"first"``.
        slice_stack: reader of ``.npy`` files; None refuses them.
        largest_extent: mm; a longer volume has a damaged header.
        plane: ``"sagittal"``, ``"coronal"`` or ``"axial"``: slices that are thicker than their pixels by half have to lie
            in it; None for any.
        spacing_range: mm; voxels smaller or larger than that are not believed. Bare arrays have none.
        affine_from: where both of a NIfTI file's transforms are set and differ by more than 1 % of a voxel:
            ``"refuse"``, or take the ``"sform"`` or the ``"qform"``.
        max_voxels: refuse more before memory is taken.

    Shape:
        scan -> (1, H, W, D), a ``MetaTensor`` of float32

    Raises:
        VolumeError: a file that is missing, damaged, no volume, or implausibly large.
        SeriesRefused: a DICOM series that cannot be read faithfully.
    """

    backend = [TransformBackends.TORCH]

    def __init__(
        self,
        axcodes: str = "RAS",
        modality: str | None = None,
        echo_time: float | Literal["first"] | None = "first",
        slice_stack: LoadSliceStack | None = None,
        largest_extent: float = 2500.0,
        plane: Literal["sagittal", "coronal", "axial"] | None = None,
        spacing_range: Sequence[float] = (0.01, 100.0),
        affine_from: Literal["refuse", "sform", "qform"] = "refuse",
        max_voxels: int = 2**28,
    ) -> None:
        if plane not in (None, *_PLANES):
            raise ValueError(f"plane must be one of {', '.join(_PLANES)}, or null for any; got {plane!r}")
        if affine_from not in ("refuse", "sform", "qform"):
            raise ValueError(f"affine_from must be refuse, sform or qform, got {affine_from!r}")
        self.orient = Orientation(axcodes=axcodes, labels=None)
        self.modality = modality
        self.echo_time = echo_time
        self.slice_stack = slice_stack
        self.largest_extent = float(largest_extent)
        self.plane = plane
        self.spacing_range = (float(spacing_range[0]), float(spacing_range[1]))
        self.affine_from = affine_from
        self.max_voxels = int(max_voxels)

    def __call__(self, scan: RawScan | str | os.PathLike) -> MetaTensor:
        """Read a scan, given as a :class:`RawScan` or as a path."""
        scan = scan if isinstance(scan, RawScan) else RawScan(os.fspath(scan))
        name = scan.path.lower()
        check_file(scan.path)
        if scan.files or os.path.isdir(scan.path):
            volume = self._read_dicom(scan)
        elif name.endswith(".npy"):
            if self.slice_stack is None:
                raise VolumeError(f"{scan.path}: expected NIfTI or DICOM, got an array without spacing and orientation")
            volume = self.slice_stack(scan.path)
        elif name.endswith((".nrrd", ".nhdr", ".mha", ".mhd")):
            volume = read_with_itk(scan.path)
        else:
            volume = self._read_nifti(scan.path)
        self.check_header(scan.path, tuple(volume.shape[1:]), np.asarray(volume.affine))
        if _tilt(np.asarray(volume.affine)) > _OBLIQUE:
            volume.meta[REMARKS_KEY] = (*volume.meta.get(REMARKS_KEY, ()), "oblique_slices")
        oriented = self.orient(_with_three_axes(volume))
        assert isinstance(oriented, MetaTensor)
        return oriented

    def check_header(self, path: str, shape: tuple[int, ...], affine: np.ndarray) -> None:
        """Refuse a grid that is impossible, or that the settings do not believe; voxels are not needed for that.

        Raises:
            VolumeError: see the class.
        """
        self._check_grid(path, shape, affine)
        if not path.lower().endswith(".npy"):
            self._check_beliefs(path, shape, affine)

    def _read_nifti(self, path: str) -> MetaTensor:
        self._check_nifti(path)
        volume = LoadVolume()(path)
        header = check_nifti_header(path, self.affine_from)
        if header.affine is not None:
            # LoadVolume has turned the axes by the file's first transform: undo, so that the other one fits
            meta = {ImageMetaKey.FILENAME_OR_OBJ: path}
            volume = MetaTensor(_as_stored(path), affine=torch.from_numpy(header.affine), meta=meta)
        volume.meta[REMARKS_KEY] = header.remarks
        return volume

    def _read_dicom(self, scan: RawScan) -> MetaTensor:
        # pydicom is an extra, and only DICOM needs it
        from medical_diffusion_components.dicom.series import find_series, read_volume, select_series

        groups = find_series(scan.path, [Path(file) for file in scan.files] or None)
        group = select_series(groups, scan.series_uid, self.echo_time, self.modality, scan.num_images)
        if group.rows * group.columns * len(group.slices) > self.max_voxels:
            raise VolumeError(f"{group.label}: more than the {self.max_voxels} voxels allowed")
        series = read_volume(group)
        meta = {
            ImageMetaKey.FILENAME_OR_OBJ: scan.path,
            PADDING_KEY: series.padding_value,
            PADDING_LIMIT_KEY: series.padding_limit,
            REMARKS_KEY: series.remarks,
        }
        return MetaTensor(torch.from_numpy(series.array)[None], affine=torch.from_numpy(series.affine), meta=meta)

    def _check_beliefs(self, path: str, shape: tuple[int, ...], affine: np.ndarray) -> None:
        """Plane and spacing as the configuration believes them."""
        if min(shape) < _MIN_SLICES:
            raise VolumeError(
                f"{path}: expected a volume of at least {_MIN_SLICES} slices each way, got {shape} voxels"
            )
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        low, high = self.spacing_range
        if spacing.min() < low or spacing.max() > high:
            raise VolumeError(
                f"{path}: expected voxels of {low:g} to {high:g} mm, got {tuple(float(f'{s:.4g}') for s in spacing)} mm: "
                "is the unit of the header right? (--spacing_range)"
            )
        found = acquisition_plane(affine)
        if self.plane is not None and found not in (None, self.plane):
            raise VolumeError(f"{path}: expected {self.plane} slices, got {found} ones (--plane null takes any)")

    def _check_nifti(self, path: str) -> None:
        """What reading would only notice when memory is full, or not at all."""
        try:
            shape = cast(SpatialImage, nib.load(path)).shape
        except Exception:
            return  # LoadVolume says what is wrong
        if np.prod(shape, dtype=float) > self.max_voxels:
            raise VolumeError(f"{path}: {shape} are more than the {self.max_voxels} voxels allowed")
        if path.lower().endswith(".gz"):
            # nibabel stops at the last voxel; the checksum, which reveals damaged voxels, comes after it
            try:
                with gzip.open(path) as file:
                    while file.read(_BLOCK):
                        pass
            except Exception as error:
                raise VolumeError(f"{path}: the file is damaged or incomplete: {error}") from error

    def _check_grid(self, path: str, shape: tuple[int, ...], affine: np.ndarray) -> None:
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        extent = spacing * shape
        if not (
            np.isfinite(affine).all() and (spacing > _SMALLEST_SPACING).all() and (extent <= self.largest_extent).all()
        ):
            raise VolumeError(
                f"{path}: expected an extent of at most {self.largest_extent:g} mm, got {shape} voxels of "
                f"{tuple(float(f'{s:.4g}') for s in spacing)} mm"
            )
        cosines = np.abs(np.triu((affine[:3, :3] / spacing).T @ (affine[:3, :3] / spacing), k=1)).max()
        if cosines > 1e-2:
            raise VolumeError(f"{path}: expected voxel axes at right angles, got a sheared affine {affine.tolist()}")


def check_file(path: str) -> None:
    """Refuse a file that holds no volume at all; a folder is left alone.

    Raises:
        VolumeError: it cannot be read, is empty, or is a pointer or a web page in the place of a volume.
    """
    if not os.path.isfile(path):
        return
    try:
        reason = why_no_volume(Path(path))
    except OSError as error:
        raise VolumeError(f"{path}: the file cannot be read: {error.strerror}") from error
    if reason:
        raise VolumeError(f"{path}: {reason}")


def acquisition_plane(affine: np.ndarray) -> str | None:
    """The plane of slices that are much thicker than their pixels; None where voxels are about as long each way."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    thickest = int(np.argmax(spacing))
    if spacing[thickest] < _THICK * np.sort(spacing)[1]:
        return None
    return _PLANES[int(np.argmax(np.abs(affine[:3, thickest])))]


def _tilt(affine: np.ndarray) -> float:
    """Degrees between the normal of slices that have a plane and the axis of that plane; 0 for those without."""
    if acquisition_plane(affine) is None:
        return 0.0
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    thickest = int(np.argmax(spacing))
    return float(np.degrees(np.arccos(min(1.0, np.abs(affine[:3, thickest]).max() / spacing[thickest]))))


def _as_stored(path: str) -> torch.Tensor:
    """The voxels in the file's order, (1, x, y, z)."""
    voxels = np.ascontiguousarray(cast(SpatialImage, nib.load(path)).get_fdata(dtype=np.float32))
    return torch.from_numpy(voxels.reshape(1, *voxels.shape[:3]))


def _with_three_axes(volume: MetaTensor) -> MetaTensor:
    """The same volume, made again.

    A ``MetaTensor`` made without a channel counts one spatial axis less ever after, and MONAI's crops and pads then
    leave the last axis out of the affine.
    """
    meta = {key: value for key, value in volume.meta.items() if key != MetaKeys.AFFINE}
    return MetaTensor(volume.as_tensor(), affine=volume.affine, meta=meta)


class LoadScand(NamesItsFailure, MapTransform):
    """Dictionary form of :class:`LoadScan`; the other arguments are those of that class."""

    backend = LoadScan.backend

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False, **kwargs: Any) -> None:
        super().__init__(keys, allow_missing_keys)
        self.load = LoadScan(**kwargs)
        self.axcodes = kwargs.get("axcodes", "RAS")

    def decisions(self) -> dict[str, Any]:
        """What is believed of plane and grid, for dataset.json."""
        plane = self.load.plane or "any"
        return {
            "plane": {"slices": plane, "axes": self.axcodes, "spacing_range": list(self.load.spacing_range)},
            "affine_from": self.load.affine_from,
        }

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        data = dict(data)
        for key in self.key_iterator(data):
            with self.remembering_failure():
                data[key] = self.load(data[key])
            for remark in data[key].meta.pop(REMARKS_KEY, ()):
                add_note(data, remark, True)
        return data
