"""Tells a head from a brain: does a volume that should hold only the brain still have skull and scalp?

Two signs, either of which counts. What is bright, with all that it encloses, is larger than any brain (adult brains
with their fluid stay below 2 litres, heads have 3 to 5). Or the median intensity, followed from its surface
inwards, falls into a valley and rises again: scalp is bright, bone dark, brain bright; in a bare brain it only rises.

Measured on Colin27 with skull (3.9 l, valley at 0.44 of the brain's intensity) and without (1.7 l, no valley), and on
the skull-stripped MNI152 template (1.8 l, no valley), each also with Rician noise of up to 8 % of the maximum. The
heuristic is for T1-weighted MRI of whole heads; remains of scalp smaller than a few millimetres escape it.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Literal, NamedTuple

import numpy as np
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from monai.transforms.utils import TransformBackends
from scipy import ndimage

from medical_diffusion_components.preparation.steps.body_mask import body_mask
from medical_diffusion_components.preparation.steps.notes import add_note
from medical_diffusion_components.preparation.steps.resample import Resample
from medical_diffusion_components.transforms.volume_error import NamesItsFailure, VolumeError, file_name

__all__ = ["CheckSkull", "CheckSkulld", "SkullSigns"]

_SPACING = 3.0  # mm, fine enough for a skull
_SMALLEST = 0.05  # of the largest object: bone can part the scalp from the brain
_DEPTH = 24.0  # mm, how far in to look
_INSIDE = 24.0  # mm, what lies deeper gives the intensity to compare with


class SkullSigns(NamedTuple):
    """Millilitres of what is bright with what it encloses; deepest valley of the profile (1: none, 0: black)."""

    volume_ml: float
    valley: float


class CheckSkull(Transform):
    """Return a volume as it came; raise if it looks like a head.

    Args:
        largest_brain: ml; what is larger is a head.
        deepest_valley: in [0, 1]; a valley below this share of the lower of its two banks is a skull.

    Shape:
        (1, H, W, D) -> (1, H, W, D)

    Raises:
        VolumeError: the volume looks like a head.
    """

    backend = [TransformBackends.NUMPY]

    def __init__(self, largest_brain: float = 2300.0, deepest_valley: float = 0.75) -> None:
        self.largest_brain = float(largest_brain)
        self.deepest_valley = float(deepest_valley)

    def __call__(self, img: MetaTensor) -> MetaTensor:
        signs = self.signs(img)
        if self.has_skull(signs):
            raise VolumeError(
                f"{file_name(img)}: expected a brain without skull, this looks like a head: what is bright has "
                f"{signs.volume_ml:.0f} ml (a brain at most {self.largest_brain:g}), the profile from its surface "
                f"inwards a valley of {signs.valley:.2f} (skull: below {self.deepest_valley:g}). Remove the skull first, "
                "or name a tool with --brain_extraction"
            )
        return img

    def has_skull(self, signs: SkullSigns) -> bool:
        """The verdict on what :meth:`signs` measured."""
        return signs.volume_ml > self.largest_brain or signs.valley < self.deepest_valley

    def signs(self, img: MetaTensor) -> SkullSigns:
        """Measure a volume."""
        coarse = np.asarray(Resample(spacing=(_SPACING,) * 3)(img).as_tensor()[0])
        if not coarse.min() < coarse.max():
            raise VolumeError(f"{file_name(img)}: every voxel is {coarse.min():g}")
        mask = body_mask(coarse, _SMALLEST)
        depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1, 1:-1] * _SPACING  # outside the scan is air
        inside = coarse[depth > _INSIDE]
        volume = float(mask.sum() * _SPACING**3 / 1000)
        if inside.size == 0 or np.median(inside) <= coarse.min():
            return SkullSigns(volume, 1.0)
        floor = float(coarse.min())
        edges = np.arange(0, _DEPTH, _SPACING)
        shells = [coarse[(depth > edge) & (depth <= edge + _SPACING)] for edge in edges] + [inside]
        profile = [float(np.median(shell)) - floor for shell in shells if shell.size]
        banks = zip(np.maximum.accumulate(profile)[:-2], np.maximum.accumulate(profile[::-1])[::-1][2:])
        valleys = [value / min(bank) for value, bank in zip(profile[1:-1], banks) if min(bank) > 0]
        return SkullSigns(volume, float(min([1.0, *valleys])))


class CheckSkulld(NamesItsFailure, MapTransform):
    """Dictionary form of :class:`CheckSkull`.

    Args:
        keys: volumes to look at.
        action: ``"refuse"`` raises; ``"report"`` leaves the note ``skull`` (true or false) with the case.
        largest_brain: see :class:`CheckSkull`.
        deepest_valley: see :class:`CheckSkull`.
        allow_missing_keys: skip keys that are not there.
    """

    backend = CheckSkull.backend

    def __init__(
        self,
        keys: KeysCollection,
        action: Literal["report", "refuse"] = "report",
        largest_brain: float = 2300.0,
        deepest_valley: float = 0.75,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if action not in ("report", "refuse"):
            raise ValueError(f"action must be report or refuse, got {action!r}")
        self.action = action
        self.check = CheckSkull(largest_brain, deepest_valley)

    def __call__(self, data: Mapping[Hashable, MetaTensor]) -> dict[Hashable, MetaTensor]:
        data = dict(data)
        for key in self.key_iterator(data):
            with self.remembering_failure():
                if self.action == "refuse":
                    self.check(data[key])
                else:
                    add_note(data, "skull", self.check.has_skull(self.check.signs(data[key])))
        return data
