"""One volume of two breasts into two volumes of one breast each, both as a right breast.

Source: Khader et al., "Denoising diffusion probabilistic models for 3D medical image generation",
Scientific Reports 13, 7303 (2023): breast MRI is split into a left and a right half of 256 x 256 x 32 voxels each.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from monai.transforms.utils import TransformBackends
from monai.utils import MetaKeys

from medical_diffusion_components.preparation.steps.body_mask import large_objects
from medical_diffusion_components.preparation.steps.notes import add_note
from medical_diffusion_components.preparation.steps.resample import Resample
from medical_diffusion_components.transforms.volume_error import NamesItsFailure, VolumeError, file_name

__all__ = ["BreastHalves", "SplitBreasts", "SplitBreastsd"]

PART_KEY = "part"


class BreastHalves(NamedTuple):
    """The two volumes, each (1, H, W, D)."""

    right: MetaTensor
    left: MetaTensor


class SplitBreasts(Transform):
    """Cut the volume between the breasts, cut out the box around each, and bring it to size.

    The left breast is mirrored at the plane of the cut, so that in both volumes H runs from the middle of the body
    outwards to the patient's right, W to the front and D to the head. The mirror image lies in the world where a
    right breast would: mirrored back at the plane, its affine is true again.

    Args:
        size: voxels (H, W, D) of each volume.
        fit: ``"resize"``: the box is resampled to ``size``, and the spacing follows; ``"crop_or_pad"``: the spacing
            stays, the box is cropped or padded around its centre with the volume's lowest intensity.
        margin: mm around the outline's bounding box.
        smallest: ml; less on one side is no breast.

    Shape:
        (1, H, W, D) on RAS axes, mask of the same shape -> twice (1, *size)

    Raises:
        VolumeError: other axes, or no breast on one side.
    """

    backend = [TransformBackends.TORCH]

    def __init__(
        self,
        size: Sequence[int],
        fit: Literal["resize", "crop_or_pad"] = "resize",
        margin: float = 5.0,
        smallest: float = 30.0,
    ) -> None:
        if fit not in ("resize", "crop_or_pad"):
            raise ValueError(f"fit must be resize or crop_or_pad, got {fit!r}")
        self.size = tuple(int(n) for n in size)
        self.fit = fit
        self.margin = float(margin)
        self.smallest = float(smallest)

    def __call__(self, img: MetaTensor, mask: torch.Tensor) -> BreastHalves:  # type: ignore[override]  # two inputs
        """Split ``img`` by the outline ``mask``."""
        axes = "".join(nib.aff2axcodes(np.asarray(img.affine)))
        if axes != "RAS" or mask.shape != img.shape:
            raise VolumeError(
                f"{file_name(img)}: expected RAS axes and an outline of shape {tuple(img.shape)}, got {axes} axes and "
                f"an outline of shape {tuple(mask.shape)}"
            )
        outline = np.asarray(mask[0] > 0)
        middle = _gap(outline)
        return BreastHalves(
            right=self._half(img, outline, middle, img.shape[1], "right"),
            left=self._half(img, outline, 0, middle, "left"),
        )

    def _half(self, img: MetaTensor, outline: np.ndarray, first: int, last: int, side: str) -> MetaTensor:
        """The breast between the planes ``first`` and ``last`` of H."""
        affine = np.asarray(img.affine, dtype=np.float64)
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        own = np.zeros_like(outline)
        own[first:last] = large_objects(outline[first:last])
        volume = own.sum() * np.prod(spacing) / 1000
        if volume < self.smallest:
            raise VolumeError(
                f"{file_name(img)}: expected a breast of at least {self.smallest:g} ml on the {side}, the outline has "
                f"{volume:.0f} ml there"
            )
        places = [np.flatnonzero(own.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
        extra = np.round(self.margin / spacing).astype(int)
        low = np.array([place[0] for place in places]) - extra
        high = np.array([place[-1] + 1 for place in places]) + extra
        if self.fit == "crop_or_pad":
            low = (low + high - self.size) // 2
            high = low + self.size
        bounds = [(first, last), (0, img.shape[2]), (0, img.shape[3])]
        box = _cut(img.as_tensor(), low, high, bounds, pad=self.fit == "crop_or_pad")
        low = low if self.fit == "crop_or_pad" else np.maximum(low, [bound[0] for bound in bounds])
        start = low.astype(float)
        if side == "left":
            box = box.flip(1)
            start[0] = 2 * last - low[0] - box.shape[1]  # index n becomes 2 * last - 1 - n, beyond the plane
        shift = np.eye(4)
        shift[:3, 3] = start
        meta = {key: value for key, value in img.meta.items() if key != MetaKeys.AFFINE}
        half = MetaTensor(box, affine=torch.from_numpy(affine @ shift), meta=meta)
        return half if self.fit == "crop_or_pad" else Resample(size=self.size)(half)


class SplitBreastsd(NamesItsFailure, MapTransform):
    """Dictionary form of :class:`SplitBreasts`: one case becomes two, which say under ``part`` which side they are.

    Args:
        keys: the image, one key.
        mask_key: its outline; gone afterwards.
        size: see :class:`SplitBreasts`.
        fit: see :class:`SplitBreasts`.
        margin: see :class:`SplitBreasts`.
        smallest: see :class:`SplitBreasts`.
        label_key: label map of whole numbers that is cut the same way: class by class, so that where the voxels change
            their size the class with the largest share of a voxel has it. None, or not there: no label.
    """

    backend = SplitBreasts.backend

    def __init__(
        self,
        keys: KeysCollection,
        size: Sequence[int],
        mask_key: str = "mask",
        fit: Literal["resize", "crop_or_pad"] = "resize",
        margin: float = 5.0,
        smallest: float = 30.0,
        label_key: str | None = None,
    ) -> None:
        super().__init__(keys)
        if len(self.keys) != 1:
            raise ValueError(f"one image can be split, got the keys {self.keys}")
        self.mask_key = mask_key
        self.label_key = label_key
        self.split = SplitBreasts(size, fit, margin, smallest)

    def __call__(self, data: Mapping[Hashable, Any]) -> list[dict[Hashable, Any]]:
        key = self.keys[0]
        with self.remembering_failure():
            halves = self.split(data[key], data[self.mask_key])
            labels = self._labels(data)
        cases = []
        for side, volume in halves._asdict().items():
            case = {name: value for name, value in data.items() if name != self.mask_key}
            case.update({key: volume, PART_KEY: side})
            if labels is not None:
                case[self.label_key] = getattr(labels, side)
            add_note(case, "mirrored", "left to right" if side == "left" else "no")
            cases.append(case)
        return cases

    def _labels(self, data: Mapping[Hashable, Any]) -> BreastHalves | None:
        if self.label_key not in data:
            return None
        label, mask = data[self.label_key], data[self.mask_key]
        shares = [self.split((label == value).float(), mask) for value in range(int(label.max()) + 1)]
        halves = []
        for classes in zip(*shares):  # right, left
            likeliest = torch.cat([one.as_tensor() for one in classes]).argmax(0, keepdim=True)
            halves.append(MetaTensor(likeliest.float(), affine=classes[0].affine))
        return BreastHalves(*halves)


def _gap(outline: np.ndarray) -> int:
    """The plane of H between the two breasts: where the outline is narrowest between its two largest cross-sections."""
    profile = outline.sum(axis=(1, 2)).astype(float)
    if not profile.any():
        return len(profile) // 2
    columns = np.flatnonzero(profile)
    centre = (columns[0] + columns[-1] + 1) // 2
    left = int(np.argmax(profile[:centre])) if centre > 0 else 0
    right = centre + int(np.argmax(profile[centre:]))
    between = profile[left : right + 1]
    narrowest = np.flatnonzero(between == between.min())
    return left + round((narrowest[0] + narrowest[-1] + 1) / 2)


def _cut(
    img: torch.Tensor, low: np.ndarray, high: np.ndarray, bounds: Sequence[tuple[int, int]], pad: bool
) -> torch.Tensor:
    """Voxels ``low`` to ``high`` of (1, H, W, D) within ``bounds``; beyond them nothing, or the lowest intensity."""
    inside = [(max(a, first), min(b, last)) for a, b, (first, last) in zip(low.tolist(), high.tolist(), bounds)]
    box = img[(slice(None), *(slice(a, b) for a, b in inside))]
    if not pad:
        return box
    whole = img.new_full((1, *(high - low).tolist()), float(img.min()))
    place = tuple(slice(a - start, b - start) for (a, b), start in zip(inside, low.tolist()))
    whole[(slice(None), *place)] = box
    return whole
