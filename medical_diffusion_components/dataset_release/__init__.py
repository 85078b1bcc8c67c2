"""A data set for others: synthetic volumes that passed the audit, with all that is needed to load and to judge them."""

from medical_diffusion_components.dataset_release.croissant import croissant
from medical_diffusion_components.dataset_release.dataset_release import DatasetRelease
from medical_diffusion_components.dataset_release.draws import Draws, RecordingFilter
from medical_diffusion_components.dataset_release.facts import ReleaseError, ReleaseFacts
from medical_diffusion_components.dataset_release.layout import write_volumes

__all__ = [
    "DatasetRelease",
    "Draws",
    "RecordingFilter",
    "ReleaseError",
    "ReleaseFacts",
    "croissant",
    "write_volumes",
]
