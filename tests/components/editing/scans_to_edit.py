"""Scans that are edited in the tests, on the grid of a small model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np

from medical_diffusion_components.editing import (
    ScanEditing,
)

SIZE = (16, 12, 20)
AFFINE = np.array([[0, 2.0, 0, -5], [-1.5, 0, 0, 9], [0, 0, 3.0, -11], [0, 0, 0, 1]])
Edit = Callable[..., ScanEditing]


def save(path: Path, array: np.ndarray, slope: float | None = None) -> Path:
    image = nib.Nifti1Image(array, AFFINE)
    image.header["descrip"] = b"DOE^JANE"
    if slope is not None:
        image.header.set_slope_inter(slope, -3.0)
    nib.save(image, path)
    return path
