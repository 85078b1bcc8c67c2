"""The page of an edit: before, after and their difference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np

from medical_diffusion_components.pages.page import Gallery, PageCase, PageVolume, write_page

__all__ = ["Edit", "write_edit_page"]

REAL = (
    "This page holds a real scan, and what was made from it still shows the same patient. It is to be handled as the scan "
    "is, and is not synthetic in the sense of privacy."
)
LARGEST = 128  # voxels of a side on the page; larger volumes are shown with every second voxel, or fewer


class Edit(NamedTuple):
    """One result: what it is called, the volumes to look at side by side, the first two with their difference."""

    title: str
    volumes: Mapping[str, np.ndarray]  # name -> (X, Y, Z)
    text: str = ""


def write_edit_page(
    path: str | Path,
    title: str,
    sentences: Sequence[str],
    edits: Sequence[Edit],
    window: Sequence[float],
    affine: np.ndarray,
    facts: Mapping[str, Any],
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
    notice: str | None = None,
) -> Path:
    """Write the page; it needs no network.

    Args:
        path: of the HTML file.
        title: its heading.
        sentences: what was done and found.
        edits: results to look at.
        window: intensities shown as black and white.
        affine: of the volumes.
        facts: how they were made.
        curves: name -> x and y.
        notice: what the model was trained on.
    """
    step = max(1, -(-max(next(iter(edits[0].volumes.values())).shape) // LARGEST))
    low, high = (float(value) for value in window)
    cases = [
        PageCase(
            edit.title,
            [PageVolume(name, array[::step, ::step, ::step], (low, high)) for name, array in edit.volumes.items()],
            edit.text,
            difference=True,
        )
        for edit in edits
    ]
    text = "Before, after, and their difference: grey where both are the same."
    spacing = np.linalg.norm(affine[:3, :3], axis=0) * step
    return write_page(
        path,
        title,
        sentences,
        facts,
        [Gallery("Before and after", text, cases)],
        spacing.tolist(),
        "".join(nib.aff2axcodes(affine)),
        curves,
        [REAL, notice or ""],
        curves_are=("Distance from the scan", "strength"),
    )
