"""Editing of real scans: a region redrawn, variations, and what lies between two scans.

What comes out holds a patient's anatomy. It is never called synthetic: its name, its note, and its DICOM form say that it
was edited from a real scan, and training, evaluation and audits refuse it.
"""

from medical_diffusion_components.editing.edited_volumes import EditedVolumeWriter
from medical_diffusion_components.editing.latent_editor import LatentEditor, jump_schedule
from medical_diffusion_components.editing.pasting import blended, filled, membrane, seam
from medical_diffusion_components.editing.reach import free_positions
from medical_diffusion_components.editing.scan_editing import ScanEditing
from medical_diffusion_components.editing.scans import Grid, Scan, model_grid, read_mask, read_scan

__all__ = [
    "EditedVolumeWriter",
    "Grid",
    "LatentEditor",
    "Scan",
    "ScanEditing",
    "blended",
    "filled",
    "free_positions",
    "jump_schedule",
    "membrane",
    "model_grid",
    "read_mask",
    "read_scan",
    "seam",
]
