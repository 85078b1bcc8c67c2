"""Reading of one raw scan, whatever it was stored as: NIfTI, a DICOM series, or a bare array of slices."""

from __future__ import annotations

import gzip
import os
from collections.abc import Hashable, Mapping
from typing import Any, Literal, NamedTuple

import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Orientation, Transform
from monai.transforms.utils import TransformBackends
from monai.utils import ImageMetaKey, MetaKeys

from medical_diffusion_components.preparation.steps.load_slice_stack import LoadSliceStack
from medical_diffusion_components.transforms.load_volume import LoadVolume
from medical_diffusion_components.transforms.volume_error import NamesItsFailure, VolumeError

__all__ = ["LoadScan", "LoadScand", "RawScan"]

PADDING_KEY = "padding_value"
_BLOCK = 1 << 20
_SMALLEST_SPACING = 1e-4  # mm


class RawScan(NamedTuple):
    """Where a scan lies: a NIfTI or ``.npy`` file, or the folder of a DICOM series.

    ``series_uid`` and ``num_images`` say which series of the folder, and how many slices a whole download has.
    """

    path: str
    series_uid: str | None = None
    num_images: int | None = None


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
        max_voxels: int = 2**28,
    ) -> None:
        self.orient = Orientation(axcodes=axcodes, labels=None)
        self.modality = modality
        self.echo_time = echo_time
        self.slice_stack = slice_stack
        self.largest_extent = float(largest_extent)
        self.max_voxels = int(max_voxels)

    def __call__(self, scan: RawScan | str | os.PathLike) -> MetaTensor:
        """Read a scan, given as a :class:`RawScan` or as a path."""
        scan = scan if isinstance(scan, RawScan) else RawScan(os.fspath(scan))
        if os.path.isdir(scan.path):
            volume = self._read_dicom(scan)
        elif scan.path.endswith(".npy"):
            if self.slice_stack is None:
                raise VolumeError(f"{scan.path}: expected NIfTI or DICOM, got an array without spacing and orientation")
            volume = self.slice_stack(scan.path)
        else:
            self._check_nifti(scan.path)
            volume = LoadVolume()(scan.path)
        self._check_grid(scan.path, tuple(volume.shape[1:]), np.asarray(volume.affine))
        return self.orient(_with_three_axes(volume))

    def _read_dicom(self, scan: RawScan) -> MetaTensor:
        # pydicom is an extra, and only DICOM needs it
        from medical_diffusion_components.dicom.series import find_series, read_volume, select_series

        group = select_series(find_series(scan.path), scan.series_uid, self.echo_time, self.modality, scan.num_images)
        if group.rows * group.columns * len(group.slices) > self.max_voxels:
            raise VolumeError(f"{group.label}: more than the {self.max_voxels} voxels allowed")
        series = read_volume(group)
        meta = {ImageMetaKey.FILENAME_OR_OBJ: scan.path, PADDING_KEY: series.padding_value}
        return MetaTensor(torch.from_numpy(series.array)[None], affine=torch.from_numpy(series.affine), meta=meta)

    def _check_nifti(self, path: str) -> None:
        """What reading would only notice when memory is full, or not at all."""
        try:
            shape = nib.load(path).shape
        except Exception:
            return  # LoadVolume says what is wrong
        if np.prod(shape, dtype=float) > self.max_voxels:
            raise VolumeError(f"{path}: {shape} are more than the {self.max_voxels} voxels allowed")
        if path.endswith(".gz"):
            # nibabel stops at the last voxel; the checksum, which tells of damaged voxels, comes after it
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


def _with_three_axes(volume: MetaTensor) -> MetaTensor:
    """The same volume, made anew.

    A ``MetaTensor`` made without a channel counts one spatial axis less ever after, and MONAI's crops and pads then
    leave the last axis out of the affine.
    """
    meta = {key: value for key, value in volume.meta.items() if key != MetaKeys.AFFINE}
    return MetaTensor(volume.as_tensor(), affine=volume.affine, meta=meta)


class LoadScand(NamesItsFailure, MapTransform):
    """Dictionary form of :class:`LoadScan`; the further arguments are its."""

    backend = LoadScan.backend

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False, **kwargs: Any) -> None:
        super().__init__(keys, allow_missing_keys)
        self.load = LoadScan(**kwargs)

    def __call__(self, data: Mapping[Hashable, RawScan | str]) -> dict[Hashable, MetaTensor]:
        data = dict(data)
        for key in self.key_iterator(data):
            with self.remembering_failure():
                data[key] = self.load(data[key])
        return data
