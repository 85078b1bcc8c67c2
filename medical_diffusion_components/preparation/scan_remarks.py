"""What a careful reader would notice of a scan before a network sees it: another modality, a label map, another size."""

from __future__ import annotations

import logging
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from medical_diffusion_components.data.datasets import SAME_SPACING
from medical_diffusion_components.data.label_maps import looks_like_labels
from medical_diffusion_components.preparation.steps.check_hounsfield import CheckHounsfield
from medical_diffusion_components.transforms.scale_as_prepared import fixed_scale
from medical_diffusion_components.transforms.volume_error import VolumeError, file_name, times
from medical_diffusion_components.weights import EMBEDDED

__all__ = ["Mixture", "RemarkOnScand", "modality_remark", "trained_modality"]

logger = logging.getLogger(__name__)

_MOST_VOXELS = 2**31
_SCALED = 1.001  # magnitude up to which intensities are those of a volume that was scaled before


def trained_modality(note: Mapping[str, Any]) -> str | None:
    """``CT`` or ``MR``, as far as the note beside weights tells what they were trained on; None: it does not.

    An embedded cohort of chests is CT, the others are MR. Of the user's data the note has the window that preparation
    fixed: one that begins well below 0 is of Hounsfield units.
    """
    data, window = str(note.get("data")), note.get("window")
    if data.startswith(EMBEDDED):
        return "CT" if "chest" in data else "MR"
    return "CT" if window and window[0] < -100 else None


def modality_remark(image: torch.Tensor, trained: str | None) -> str:
    """What a careful reader would want to know of a scan of another kind than ``trained``; empty: nothing.

    Args:
        image: (1, H, W, D), intensities as in its file.
        trained: ``CT``, ``MR`` or another modality, or None where nobody knows.
    """
    low, high = float(image.min()), float(image.max())
    if trained is None or max(-low, high) <= _SCALED:
        return ""
    if not _is_hounsfield(image):
        if trained == "CT":
            return f"the network was trained on CT, and intensities from {low:g} to {high:g} are not Hounsfield units"
        return ""
    if trained == "CT":
        return ""
    return f"the network was trained on {trained}, and intensities from {low:g} to {high:g} look like a CT's"


def _is_hounsfield(image: torch.Tensor) -> bool:
    try:
        CheckHounsfield()(image)
    except VolumeError:
        return False
    return True


class Mixture:
    """Looks at the volumes of a data set, one after the other, and says of what kinds they are if they are of several."""

    def __init__(self) -> None:
        self.spacings: dict[str, np.ndarray] = {}  # case id -> mm to the right, to the front and up
        self.labels: list[str] = []
        self.hounsfield: list[str] = []

    def look(self, case_id: str, volume: MetaTensor) -> None:
        """Args: case_id: of the volume. volume: (1, H, W, D), axes to the right, to the front and up."""
        self.spacings[case_id] = nib.affines.voxel_sizes(np.asarray(volume.affine))
        if looks_like_labels(volume.numpy()):
            self.labels.append(case_id)
        elif _is_hounsfield(volume):
            self.hounsfield.append(case_id)

    def remarks(self) -> list[str]:
        """What a careful reader would want to know before a network learns from these volumes."""
        found, number = [], len(self.spacings)
        if self.labels:
            found.append(
                f"{len(self.labels)} of {number} volumes look like label maps, the first is {self.labels[0]}: they count "
                "as images here"
            )
        if 0 < len(self.hounsfield) < number - len(self.labels):
            found.append(
                f"{len(self.hounsfield)} of {number} volumes are in Hounsfield units, as CT is, the first is "
                f"{self.hounsfield[0]}; the others are not"
            )
        for axis in range(3) if number else ():
            finest, coarsest = (choose(self.spacings, key=lambda id: self.spacings[id][axis]) for choose in (min, max))
            one, other = (self.spacings[case_id] for case_id in (finest, coarsest))
            if other[axis] > (1 + SAME_SPACING) * one[axis]:
                said = [
                    f"{case} {' x '.join(f'{s:.3g}' for s in self.spacings[case])} mm" for case in (finest, coarsest)
                ]
                found.append(
                    f"voxels are of several sizes, such as {said[0]} and {said[1]}: a network learns in voxels"
                )
                break
        return found


class RemarkOnScand(MapTransform):
    """Log a warning for each scan that is odd for a network that reads scans at one spacing; nothing is changed.

    Odd are another modality than the network was trained on, a label map, and a scan of less than half the window along an
    axis once it is resampled. Volumes whose data set states their scale were prepared: their intensities are not looked at.

    Args:
        keys: volumes.
        trained: modality, as :func:`trained_modality` gives it; None: any.
        spacing: mm along H, W, D to which the scan will be resampled; None: to none.
        axcodes: where H, W and D point.
        window: voxels (H, W, D) that the network sees at once; None: any.
        allow_missing_keys: whether a volume may be missing.

    Raises:
        VolumeError: a scan that would have more than 2^31 voxels at that spacing.
    """

    def __init__(
        self,
        keys: KeysCollection,
        trained: str | None,
        spacing: Sequence[float] | None = None,
        axcodes: str = "RAS",
        window: Sequence[int] | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.trained = trained
        self.spacing = spacing
        self.axcodes = axcodes
        self.window = window

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        for key in self.key_iterator(dict(data)):
            image, remarks = data[key], []
            if not fixed_scale(data):
                remarks.append(modality_remark(image, self.trained))
                if looks_like_labels(image.numpy()):
                    remarks.append("it looks like a label map, not like an image")
            if self.spacing is not None:
                remarks.append(self._size_remark(image))
            for remark in filter(None, remarks):
                logger.warning(f"{file_name(image)}: {remark}: the result may mean nothing")
        return dict(data)

    def _size_remark(self, image: torch.Tensor) -> str:
        affine = np.asarray(image.affine)  # type: ignore[attr-defined]  # a MetaTensor
        order = [int(axis) for axis in nib.orientations.axcodes2ornt(tuple(self.axcodes))[:, 0]]
        own = nib.io_orientation(affine)[:, 0].astype(int).tolist()
        lengths = np.array(image.shape[1:]) * nib.affines.voxel_sizes(affine)  # mm along the file's axes
        size = [max(1, round(lengths[own.index(axis)] / s)) for axis, s in zip(order, self.spacing or ())]
        if math.prod(size) > _MOST_VOXELS:
            raise VolumeError(
                f"{file_name(image)}: at a spacing of {list(self.spacing or ())} mm it would have {times(size)} voxels: "
                "expected at most 2^31; leave --spacing out, it is that of the training"
            )
        small = self.window is not None and any(2 * n < w for n, w in zip(size, self.window))
        return (
            f"at the network's spacing it has {times(size)} voxels, less than half its window of {times(self.window or ())}"
            * small
        )
