"""How much the subjects of an embedded cohort differ in appearance, and whether they have lesions: off by default.

The plain cohorts are easy: a segmentation that has seen one or two of their subjects knows them all. With a
:class:`Variation` the contrast of every tissue, the bias field, the noise and the sharpness differ from subject to subject,
and small lesions of any place, size, number and contrast are drawn into them. What a plain cohort draws stays as it is: all
that is added here comes from a stream of random numbers of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter

from medical_diffusion_components.chance import numpy_generator

__all__ = [
    "PLAIN",
    "TEST_BED",
    "Lesion",
    "Variation",
    "draw_lesions",
    "variation_rng",
    "varied_appearance",
    "varied_contrast",
]

_STREAM = 7  # keeps what is drawn here apart from the anatomies' own streams
BIAS_COEFFICIENTS = 9  # of a polynomial of second order without its constant
REFERENCE = 0.99  # quantile of the foreground that noise is a share of


class Variation(NamedTuple):
    """What is varied between subjects, beyond what the plain cohort varies; all zero is the plain cohort.

    Args:
        contrast: standard deviation of the logarithm of each tissue's intensity. From about 0.3 on, the order of the
            tissues changes from subject to subject.
        bias: standard deviation of the logarithm of a smooth field of the second order across the volume.
        noise: largest sigma of additional Rician noise, as a share of the brightest tissue.
        blur: largest sigma of a Gaussian blur, mm.
        lesions: at most so many in each organ; at least one if it is not 0.
        dark: probability that a lesion is darker than all tissues around it instead of brighter.
    """

    contrast: float = 0.0
    bias: float = 0.0
    noise: float = 0.0
    blur: float = 0.0
    lesions: int = 0
    dark: float = 0.0

    def checked(self) -> Variation:
        """Itself.

        Raises:
            ValueError: a negative value, or a probability above 1.
        """
        if any(not 0 <= value < np.inf for value in self) or self.dark > 1:
            raise ValueError(
                f"expected a variation of numbers of at least 0, and dark of at most 1, got {self._asdict()}"
            )
        return self


PLAIN = Variation()
TEST_BED = Variation(contrast=0.35, bias=0.15, noise=0.05, blur=1.0, lesions=2)  # of docs/label_study.md


class Lesion(NamedTuple):
    """A lesion, up to its place."""

    direction: np.ndarray  # (3,) where it lies in its organ, within the unit ball
    radii: np.ndarray  # (3,) mm
    bright: bool  # brighter than all tissues around it, or darker


def variation_rng(subject: int, seed: int, anatomy: int) -> np.random.Generator:
    """The stream of a subject's variation; ``anatomy`` is any number that the anatomy has for itself."""
    return numpy_generator(seed, subject, _STREAM, anatomy)


def varied_contrast(rng: np.random.Generator, contrast: Mapping[str, float], variation: Variation) -> dict[str, float]:
    """Intensity of every tissue of a subject, each by a log-normal factor of its own."""
    return {tissue: value * float(np.exp(variation.contrast * rng.normal())) for tissue, value in contrast.items()}


def draw_lesions(rng: np.random.Generator, variation: Variation, radius: tuple[float, float]) -> list[Lesion]:
    """One to ``variation.lesions`` lesions, or none if that is 0.

    Args:
        rng: source of randomness.
        variation: how many.
        radius: smallest and largest mean radius, mm.
    """
    lesions = []
    for _ in range(int(rng.integers(1, variation.lesions + 1)) if variation.lesions else 0):
        direction = rng.normal(size=3)
        direction *= rng.random() ** (1 / 3) / np.linalg.norm(direction)  # uniform in the ball
        radii = rng.uniform(*radius) * np.exp(0.15 * rng.normal(size=3))
        lesions.append(Lesion(direction, radii, bool(rng.random() >= variation.dark)))
    return lesions


def lesion_intensity(lesion: Lesion, tissues: Sequence[float]) -> float:
    """A third brighter than the brightest of the tissues around it, or half as bright as the darkest."""
    return 1.35 * max(tissues) if lesion.bright else 0.5 * min(tissues)


def varied_appearance(
    rng: np.random.Generator, image: np.ndarray, spacing: Sequence[float], variation: Variation
) -> np.ndarray:
    """Blur, bias field and noise of a subject.

    Args:
        rng: source of randomness.
        image: (H, W, D), intensities from 0.
        spacing: mm.
        variation: how much.

    Returns:
        float32, (H, W, D), at least 0.
    """
    sigma_mm, share = rng.uniform(0, variation.blur), rng.uniform(0, variation.noise)
    image = gaussian_filter(image.astype(np.float32), [sigma_mm / s for s in spacing])
    image *= np.exp(_polynomial(rng, image.shape, variation.bias))
    sigma = np.float32(share * np.quantile(image[image > 0], REFERENCE))
    real, imaginary = (sigma * rng.standard_normal(image.shape, dtype=np.float32) for _ in range(2))
    return np.hypot(image + real, imaginary)


def _polynomial(rng: np.random.Generator, shape: Sequence[int], deviation: float) -> np.ndarray:
    """A random polynomial of the second order over the volume, of this mean standard deviation; float32."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in shape), indexing="ij", sparse=True)
    terms = [x, y, z, x * y, x * z, y * z, x * x - 1 / 3, y * y - 1 / 3, z * z - 1 / 3]
    # mean squares over the cube, so that each term has its share of the variance
    squares = [1 / 3] * 3 + [1 / 9] * 3 + [4 / 45] * 3
    field = np.zeros(tuple(shape), dtype=np.float32)
    for term, square, weight in zip(terms, squares, rng.normal(size=BIAS_COEFFICIENTS)):
        field += np.float32(deviation * weight / np.sqrt(BIAS_COEFFICIENTS * square)) * term
    return field
