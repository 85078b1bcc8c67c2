"""A user's scan and mask, and the grid on which a model looks at them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, cast

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from scipy import ndimage

from medical_diffusion_components.data.datasets import SAME_SPACING
from medical_diffusion_components.data.label_maps import looks_like_labels
from medical_diffusion_components.data.volume_notes import is_edited, is_synthetic
from medical_diffusion_components.orientation import centre_of_box, grid_around
from medical_diffusion_components.preparation.scan_remarks import modality_remark
from medical_diffusion_components.preparation.steps.resample import Resample
from medical_diffusion_components.transforms.check_volume import CheckVolume
from medical_diffusion_components.transforms.load_volume import LoadVolume
from medical_diffusion_components.transforms.volume_error import VolumeError, times

__all__ = ["Grid", "Scan", "model_grid", "read_mask", "read_scan", "remarks_on_mask", "remarks_on_scan"]

_LITTLE = 0.25  # share of the model's grid that a scan should fill
SAME_AFFINE = 1e-3  # mm by which the corners of scan and mask may differ


class Scan(NamedTuple):
    """A scan as its file has it.

    ``image`` is the file; ``values`` are its intensities, (X, Y, Z) float64 in the file's order of axes. ``setting`` names
    it in remarks, since a page must not show a file's name, which may be a patient's.
    """

    path: Path
    image: nib.Nifti1Image
    values: np.ndarray
    setting: str = "image"

    @property
    def affine(self) -> np.ndarray:
        """Indices to millimetres in RAS, (4, 4)."""
        return np.asarray(self.image.affine, np.float64)

    @property
    def spacing(self) -> np.ndarray:
        """mm per voxel along X, Y, Z."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)


class Grid(NamedTuple):
    """Where a model's voxels lie: indices to millimetres in RAS, (4, 4), and their number (H, W, D)."""

    affine: np.ndarray
    shape: tuple[int, int, int]

    @property
    def spacing(self) -> np.ndarray:
        """mm per voxel along H, W, D."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    def indices(self, affine: np.ndarray, voxels: np.ndarray) -> np.ndarray:
        """Where voxels (N, 3) of another grid lie in this one, (N, 3) float64."""
        change = np.linalg.inv(self.affine) @ affine
        return voxels @ change[:3, :3].T + change[:3, 3]

    def covers(self, affine: np.ndarray, mask: np.ndarray) -> bool:
        """Whether all voxels of a mask on another grid lie within this one."""
        places = self.indices(affine, np.argwhere(mask))
        return bool((places > -0.5 - 1e-6).all() and (places < np.array(self.shape) - 0.5 + 1e-6).all())

    def volume(self, values: np.ndarray, affine: np.ndarray, fill: float) -> np.ndarray:
        """Intensities of another grid on this one, averaged where its voxels are smaller; ``fill`` where it has none."""
        own, spacing = self.spacing, np.linalg.norm(affine[:3, :3], axis=0)
        coarser = _in_order_of(affine, self.affine, own) > spacing * (1 + 1e-6)
        if coarser.any():
            wanted = np.where(coarser, _in_order_of(affine, self.affine, own), spacing)
            tensor = MetaTensor(torch.from_numpy(values[None]), affine=torch.from_numpy(affine))
            resampled = Resample(spacing=wanted.tolist())(tensor)
            values, affine = resampled.as_tensor()[0].numpy(), np.asarray(resampled.affine, np.float64)
        change = np.round(np.linalg.inv(affine) @ self.affine, 9)
        return ndimage.affine_transform(
            values, change[:3, :3], change[:3, 3], self.shape, order=1, mode="grid-constant", cval=fill
        )

    def mask(self, mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
        """Voxels of this grid that a mask on another one touches, (H, W, D) bool."""
        change = np.round(np.linalg.inv(affine) @ self.affine, 9)
        sampled = ndimage.affine_transform(
            mask.astype(np.uint8), change[:3, :3], change[:3, 3], self.shape, order=0, mode="grid-constant"
        )
        touched = sampled > 0
        places = np.round(self.indices(affine, np.argwhere(mask))).astype(int)
        inside = ((places >= 0) & (places < self.shape)).all(1)
        touched[tuple(places[inside].T)] = True
        return touched

    def back(self, volume: np.ndarray, affine: np.ndarray, where: np.ndarray) -> np.ndarray:
        """Intensities on this grid at the voxels of another one that ``where`` marks, (N,), by linear interpolation."""
        places = np.round(self.indices(affine, np.argwhere(where)), 9)
        return ndimage.map_coordinates(volume.astype(np.float64), places.T, order=1, mode="nearest")


def read_scan(path: str | Path | None, name: str = "image") -> Scan:
    """Read a NIfTI file.

    Args:
        path: of the file.
        name: of the setting, for remarks and the error where it was left out.

    Raises:
        ValueError: no path.
        VolumeError: the file is missing or damaged, does not hold one 3D volume, or has voxels that are not finite or
            all the same.
    """
    if path is None:
        raise ValueError(f"expected a NIfTI file as --{name}, got none")
    CheckVolume()(LoadVolume()(path))
    return _read(Path(path))._replace(setting=name)


def read_mask(path: str | Path | None, scan: Scan) -> np.ndarray:
    """Read which voxels are to be replaced: those that are not 0, (X, Y, Z) bool.

    Raises:
        ValueError: no path.
        VolumeError: as for :func:`read_scan`; or the mask lies on another grid than the scan, is empty, or leaves no
            voxel of the scan.
    """
    if path is None:
        raise ValueError("expected a NIfTI file as --mask, whose voxels other than 0 are to be replaced; got none")
    CheckVolume(allow_constant=True)(LoadVolume()(path))
    read = _read(Path(path))
    values, affine = read.values, read.affine
    if values.shape != scan.values.shape:
        raise VolumeError(
            f"{path}: expected a mask of the scan's {times(scan.values.shape)} voxels, got {times(values.shape)}"
        )
    corners = np.array([[x, y, z, 1] for x in (0, 1) for y in (0, 1) for z in (0, 1)]) * [*values.shape, 1]
    apart = float(np.abs(corners @ (affine - scan.affine).T).max())
    if apart > SAME_AFFINE:
        raise VolumeError(
            f"{path}: expected the scan's affine {scan.affine.round(4).tolist()}, got {affine.round(4).tolist()}: "
            f"corners lie {apart:.3g} mm apart"
        )
    mask = values != 0
    if not mask.any():
        raise VolumeError(f"{path}: expected voxels other than 0, which are to be replaced; the mask is empty")
    if mask.all():
        raise VolumeError(
            f"{path}: the mask covers the whole scan, so nothing of it would be left; inference.json samples"
        )
    return mask


def remarks_on_scan(scan: Scan, grid: Grid, spacing: Sequence[float], modality: str | None) -> list[str]:
    """What a careful reader would want to know of a scan: it is edited all the same.

    Args:
        scan: the user's.
        grid: where the model looks at it.
        spacing: mm per voxel that the model was trained with.
        modality: that it was trained on; None: any.
    """
    found = []
    if remark := modality_remark(torch.from_numpy(scan.values[None]), modality):
        found.append(f"--{scan.setting}: {remark}")
    if (np.abs(grid.spacing / spacing - 1) > SAME_SPACING).any():
        own, wanted = (" x ".join(f"{length:.3g}" for length in lengths) for lengths in (grid.spacing, spacing))
        found.append(
            f"--{scan.setting} has the model's {times(grid.shape)} voxels, which are taken one by one, but of {own} mm; "
            f"it was trained with {wanted} mm"
        )
    if looks_like_labels(scan.values):
        found.append(f"--{scan.setting} looks like a label map, not like an image: was it given in place of the scan?")
    if is_edited(scan.path) or is_synthetic(scan.path):
        made = "was edited before" if is_edited(scan.path) else "is a synthetic volume"
        found.append(f"--{scan.setting} {made}, as the note beside it says: what is drawn follows a drawing")
    share = float(grid.volume(np.ones_like(scan.values), scan.affine, 0.0).mean())
    if share < _LITTLE:
        found.append(
            f"--{scan.setting} fills {share:.0%} of the {times(grid.shape)} voxels that the model sees; the rest is empty"
        )
    return found


def remarks_on_mask(path: str | Path | None) -> list[str]:
    """What a careful reader would want to know of a mask: all of its voxels other than 0 are redrawn all the same."""
    values = np.unique(_read(Path(str(path))).values)
    if (values % 1 != 0).any():
        return [
            f"--mask holds fractions, such as {values[values % 1 != 0][0]:.3g}: all that is not 0 is redrawn; cut "
            "probabilities off where you want the border to be"
        ]
    if len(values) > 2 or values.min() < 0:
        return [f"--mask holds the values {', '.join(f'{v:g}' for v in values[:6])}: all but 0 are redrawn together"]
    return []


def model_grid(
    scan: Scan,
    image_size: Sequence[int],
    spacing: Sequence[float],
    axcodes: str,
    centre: Sequence[float] | None = None,
) -> Grid:
    """Where a model looks at a scan.

    A scan of the model's size is taken voxel by voxel, as in training. Around any other one lies a grid of the spacing
    that the model was trained with, along the scan's own axes.

    Args:
        scan: the user's.
        image_size: the model's voxels (H, W, D).
        spacing: mm per voxel that the model was trained with.
        axcodes: where the model's H, W and D point.
        centre: mm in RAS; None is the middle of the box around everything brighter than the scan's least intensity.
    """
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(scan.affine), nib.orientations.axcodes2ornt(tuple(axcodes))
    )
    turned = nib.orientations.apply_orientation(scan.values, turn)
    affine = scan.affine @ nib.orientations.inv_ornt_aff(turn, scan.values.shape)
    height, width, depth = (int(n) for n in image_size)
    size = (height, width, depth)
    if turned.shape == size:
        return Grid(affine, size)
    middle = centre_of_box(np.argwhere(turned > turned.min()), affine) if centre is None else np.asarray(centre, float)
    return Grid(grid_around(middle, size, spacing, affine), size)


def _read(path: Path) -> Scan:
    image = cast(nib.Nifti1Image, nib.load(path))
    return Scan(path, image, np.asarray(image.get_fdata()).reshape(image.shape[:3]))


def _in_order_of(affine: np.ndarray, other: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """``lengths`` along the axes of ``other``, in the order in which ``affine`` has these axes."""
    order = nib.orientations.ornt_transform(nib.io_orientation(other), nib.io_orientation(affine))[:, 0].astype(int)
    turned = np.empty(3)
    turned[order] = lengths
    return turned
