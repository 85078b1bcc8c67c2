"""What lies outside the scanner's field of view becomes air."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Transform
from monai.transforms.utils import TransformBackends

from medical_diffusion_components.preparation.steps.load_scan import PADDING_KEY
from medical_diffusion_components.transforms.volume_error import NamesItsFailure

__all__ = ["FillPadding", "FillPaddingd"]


class FillPadding(Transform):
    """Set to air the voxels that a CT scanner did not measure, before anything interpolates between them and others.

    Scanners reconstruct a circle and fill the corners of the square with a number: the one that the DICOM header names
    (``meta["padding_value"]``, from ``LoadScan``), or, where the header is silent, one far below any tissue, such as
    -2000 or -3024. Both become ``air``, and so does noise below it.

    Args:
        air: intensity of air, -1000 Hounsfield units.

    Shape:
        (C, H, W, D) -> (C, H, W, D)
    """

    backend = [TransformBackends.TORCH]

    def __init__(self, air: float = -1000.0) -> None:
        self.air = float(air)

    def __call__(self, img: torch.Tensor) -> torch.Tensor:
        padding = getattr(img, "meta", {}).get(PADDING_KEY)
        filled = img.clamp(min=self.air)
        if padding is not None and padding > self.air:
            filled.masked_fill_(img == padding, self.air)
        return filled


class FillPaddingd(NamesItsFailure, MapTransform):
    """Dictionary form of :class:`FillPadding`."""

    backend = FillPadding.backend

    def __init__(self, keys: KeysCollection, air: float = -1000.0, allow_missing_keys: bool = False) -> None:
        """Args: keys: volumes; air: see :class:`FillPadding`."""
        super().__init__(keys, allow_missing_keys)
        self.fill = FillPadding(air)

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        data = dict(data)
        for key in self.key_iterator(data):
            data[key] = self.fill(data[key])
        return data
