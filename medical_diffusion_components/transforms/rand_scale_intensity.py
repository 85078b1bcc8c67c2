"""Make a volume darker or brighter as a whole, with the background where it is."""

from __future__ import annotations

from collections.abc import Sequence

from monai.transforms import RandomizableTransform
from torch import Tensor

from medical_diffusion_components.transforms.each_volume import RandEachVolumed

__all__ = ["RandScaleAboveBackground", "RandScaleAboveBackgroundd"]

BACKGROUND = -1.0


class RandScaleAboveBackground(RandomizableTransform):
    """Multiply what a volume in [-1, 1] has above the background, -1, by a random factor.

    MONAI's ``RandScaleIntensity`` multiplies the values themselves, which in [-1, 1] would make the background grey.

    Args:
        factors: least and greatest factor, of a uniform distribution; (1, 1) changes nothing.

    Shape:
        (C, H, W, D) -> the same

    Raises:
        ValueError: factors that are not positive or not in order.
    """

    def __init__(self, factors: Sequence[float] = (1.0, 1.0)) -> None:
        super().__init__(prob=1.0)
        low, high = (float(factor) for factor in factors)
        if not 0 < low <= high:
            raise ValueError(f"expected two positive factors, the smaller first, got {tuple(factors)}")
        self.factors = low, high

    def __call__(self, image: Tensor) -> Tensor:
        if self.factors == (1.0, 1.0):
            return image
        return (image - BACKGROUND) * float(self.R.uniform(*self.factors)) + BACKGROUND


class RandScaleAboveBackgroundd(RandEachVolumed):
    """Dictionary form of :class:`RandScaleAboveBackground`: each of ``keys`` is scaled by a factor of its own."""

    array_form = RandScaleAboveBackground
