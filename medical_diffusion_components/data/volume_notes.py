"""The JSON note beside a volume: what made it, and on which scale its intensities are."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from medical_diffusion_components.data.datalists import without_suffix
from medical_diffusion_components.transforms.scale_as_prepared import INTENSITY_RANGE, WINDOW, scale_facts

__all__ = ["is_edited", "is_synthetic", "note_beside", "note_path", "noted_scale"]


def is_synthetic(volume: str | os.PathLike) -> bool:
    """Whether the note beside a volume (``x.nii.gz``, ``x.json``) names the weights that made it, from noise alone."""
    note = note_beside(volume)
    return "weights_sha256" in note and note.get("synthetic", True) is True


def is_edited(volume: str | os.PathLike) -> bool:
    """Whether the note beside a volume says that it was edited from a real scan, whose patient it still shows."""
    return "edited_from" in note_beside(volume)


def note_path(volume: str | os.PathLike) -> Path:
    """The JSON note beside a volume: ``synthetic_000007.nii.gz`` -> ``synthetic_000007.json``."""
    return Path(without_suffix(str(volume)) + ".json")


def note_beside(volume: str | os.PathLike) -> dict[str, Any]:
    """The JSON object beside a volume, or an empty one where there is none, or another kind of file."""
    note = note_path(volume)
    if not note.is_file():
        return {}
    try:
        content = json.loads(note.read_text())
    except ValueError:  # some other file, such as a scanner's sidecar that is damaged
        return {}
    return content if isinstance(content, dict) else {}


def noted_scale(volume: str | os.PathLike) -> dict[str, list[float]]:
    """What the note beside a synthetic volume says of its scale, as ``scale_facts`` of a case; else empty."""
    if not is_synthetic(volume):
        return {}
    note = note_beside(volume)
    return scale_facts(note[INTENSITY_RANGE], note[WINDOW]) if {INTENSITY_RANGE, WINDOW} <= note.keys() else {}
