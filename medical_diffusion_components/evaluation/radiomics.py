"""Radiomic features as a space: intensity statistics and textures as radiologists' software computes them.

Konz et al., "Fréchet radiomic distance", 2024, found that distances of such features follow what matters in medical images.
The feature set here is smaller and of its own, so that no number compares with theirs: call it by its version.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.ndimage import gaussian_laplace
from torch import Tensor

from medical_diffusion_components.evaluation.feature_space import FeatureSpace

__all__ = ["RadiomicsSpace"]

VERSION = 1  # counts up with any change of the feature set
CLASSES = ("firstorder", "glcm", "glrlm", "ngtdm")  # glszm takes longer than all of these together
SCALE = 100.0  # intensities are brought from [-1, 1] to [0, SCALE]
BIN_WIDTH = 5.0
LEAST_SPREAD = 1e-3  # of a feature, as a share of its mean: some do not vary


class RadiomicsSpace(FeatureSpace):
    """Intensity statistics and textures (co-occurrence, run lengths, grey-tone differences) of the whole volume.

    They are computed of the volume and of its Laplacian of Gaussian at two scales, by numpyradiomics.

    Args:
        sigmas: of the Gaussians, in voxels.
        counts: whether the space is a judge.

    Shape:
        (C, H, W, D) in [-1, 1] -> (F,) float64; of several channels the mean is taken

    Raises:
        ImportError: numpyradiomics is not installed.
    """

    one_scale = False  # the features have units of their own

    def __init__(self, sigmas: Sequence[float] = (1.0, 2.0), counts: bool = True) -> None:
        super().__init__()
        try:
            self.library = "numpyradiomics"
            importlib.import_module(self.library)
        except ImportError as error:
            raise ImportError(
                'the space radiomics needs numpyradiomics: pip install "medical-diffusion-bundles[evaluation]"'
            ) from error
        self.sigmas = tuple(sigmas)
        self.counts = counts
        self.description = (
            f"radiomic features, set {VERSION}: {', '.join(CLASSES)} of the volume and of its Laplacian of Gaussian with "
            f"sigma {', '.join(f'{sigma:g}' for sigma in self.sigmas)} voxels; bins of {BIN_WIDTH:g} in 0 to {SCALE:g}"
        )

    def named(self, volume: Tensor) -> dict[str, float]:
        """Features by name, such as ``log_1/glcm/Contrast``."""
        image = (volume.mean(0).double().cpu().numpy() + 1) / 2 * SCALE
        images = {"original": image} | {f"log_{sigma:g}": gaussian_laplace(image, sigma) for sigma in self.sigmas}
        library, everywhere = importlib.import_module(self.library), np.ones(image.shape, dtype=bool)
        found: dict[str, float] = {}
        for name, one in images.items():
            for kind in CLASSES:
                values: Mapping[str, float] = getattr(library, kind)(one, everywhere, binWidth=BIN_WIDTH)
                found |= {f"{name}/{kind}/{feature}": float(value) for feature, value in sorted(values.items())}
        return found

    def forward(self, volume: Tensor) -> np.ndarray:
        """Features in the order of :meth:`named`; those that are not defined, as of a volume of one value, are 0."""
        return np.nan_to_num(np.array(list(self.named(volume).values())), nan=0.0, posinf=0.0, neginf=0.0)

    @staticmethod
    def standardise(features: np.ndarray, training: np.ndarray) -> np.ndarray:
        """(n, F) in units of the training volumes, (N, F); a feature that hardly varies has a thousandth of its mean."""
        mean = training.mean(0)
        return (features - mean) / (training.std(0) + LEAST_SPREAD * abs(mean) + 1e-6)
