"""What lies outside the scanner's field of view becomes background."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Transform
from monai.transforms.utils import TransformBackends

from medical_diffusion_components.preparation.steps.load_scan import PADDING_KEY, PADDING_LIMIT_KEY
from medical_diffusion_components.preparation.steps.notes import add_note
from medical_diffusion_components.transforms.volume_error import NamesItsFailure, VolumeError, file_name

__all__ = ["FillPadding", "FillPaddingd"]

_MIN_SHARE = 2e-3  # of the voxels that have the lowest value, if it is to be padding
_SIGNED = 32767.0  # the highest number of 16 bits with a sign
_BEYOND_CT = 30_000.0  # Hounsfield units; metal ends at 30,710 on extended scales
_GAP = 3.0  # times the range of all other voxels: how far below them that value lies


class FillPadding(Transform):
    """Set to background the voxels that a scanner did not measure, before anything interpolates between them and others.

    Scanners fill the corners of the square around a round field of view with a number: the one that the DICOM header names,
    or all from that to a second one (``meta["padding_value"]``, ``meta["padding_limit"]``, from ``LoadScan``). Where the
    header is silent, a number that many voxels share and that lies far below or above all others is padding, such as -32768
    or 65535 in MR. So are voxels that are no number (NaN), if there are many; a few are damage.

    Args:
        air: intensity of the background, such as -1000 Hounsfield units; what lies below becomes it, too. None: the
            lowest intensity that was measured, and no voxel but padding is changed.

    Shape:
        (C, H, W, D) -> (C, H, W, D)

    Raises:
        VolumeError: all voxels are padding; or negative numbers have been stored without their sign.
    """

    backend = [TransformBackends.TORCH]

    def __init__(self, air: float | None = None) -> None:
        self.air = None if air is None else float(air)

    def __call__(self, img: torch.Tensor) -> torch.Tensor:
        if self.air is not None:
            filled = img.clamp(min=self.air)
            first, last = (getattr(img, "meta", {}).get(key) for key in (PADDING_KEY, PADDING_LIMIT_KEY))
            # NaN if a voxel is; numpy follows the order in memory, which for turned axes is 10 times as fast as torch
            highest = float(np.asarray(filled).max())
            is_above = first is not None and max(first, first if last is None else last) > self.air
            outside = self.padding(img) if is_above or not highest < _BEYOND_CT else None
            return filled if outside is None else filled.masked_fill_(outside, self.air)
        outside = self.padding(img)
        if outside is None:
            return img
        if bool(outside.all()):
            raise VolumeError(f"{file_name(img)}: every voxel is padding")
        background = float(torch.as_tensor(img)[~torch.as_tensor(outside)].min())
        return img.masked_fill(outside, background)

    def padding(self, img: torch.Tensor) -> torch.Tensor | None:
        """Which voxels are padding, or None if there are none."""
        meta = getattr(img, "meta", {})
        first, last = meta.get(PADDING_KEY), meta.get(PADDING_LIMIT_KEY)
        if first is not None:
            low, high = sorted((first, first if last is None else last))
            outside = (img >= low) & (img <= high)
            return outside if bool(outside.any()) else None
        lowest, highest = float(img.min()), float(img.max())
        if math.isnan(lowest):
            outside = torch.isnan(img)
            return outside if float(outside.float().mean()) >= _MIN_SHARE else None
        if highest >= _SIGNED:
            _check_sign(img)
            if (outside := _far(img, highest)) is not None:
                return outside
        # with a value for air, what lies below it becomes air in any case
        return _far(img, lowest) if self.air is None and lowest < 0 else None


def _far(img: torch.Tensor, value: float) -> torch.Tensor | None:
    """Where the volume has this value, if many voxels have it and it lies far from all others."""
    outside = img == value
    if not _MIN_SHARE <= float(outside.float().mean()) < 1:
        return None
    others = torch.as_tensor(img)[~torch.as_tensor(outside)]
    low, high = float(others.min()), float(others.max())
    return outside if max(low - value, value - high) > _GAP * (high - low) else None


def _check_sign(img: torch.Tensor) -> None:
    """Refuse values of 16 bits that lie at both ends and nowhere between: those above were negative."""
    voxels = torch.as_tensor(img)
    above = voxels > _SIGNED
    between = (voxels > _SIGNED / 2) & (voxels < 1.5 * _SIGNED)
    is_wrapped = float(voxels.max()) < 2 * (_SIGNED + 1) and not bool(between.any())
    if is_wrapped and len(voxels[above].unique()) > 1 and float(voxels.min()) >= 0:
        raise VolumeError(
            f"{file_name(img)}: intensities lie below {_SIGNED / 2:.0f} and above {1.5 * _SIGNED:.0f}, none between: "
            "negative numbers without their sign (PixelRepresentation?)"
        )


class FillPaddingd(NamesItsFailure, MapTransform):
    """Dictionary form of :class:`FillPadding`; notes where there was padding."""

    backend = FillPadding.backend

    def __init__(self, keys: KeysCollection, air: float | None = None, allow_missing_keys: bool = False) -> None:
        """Args: keys: volumes; air: see :class:`FillPadding`."""
        super().__init__(keys, allow_missing_keys)
        self.fill = FillPadding(air)

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        data = dict(data)
        for key in self.key_iterator(data):
            with self.remembering_failure():
                filled = self.fill(data[key])
            if self.fill.air is None and filled is not data[key]:
                add_note(data, "padding_filled", True)
            data[key] = filled
        return data
