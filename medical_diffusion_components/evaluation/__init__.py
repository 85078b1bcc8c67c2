"""Is a generator any good? From folders of volumes to a table with floors and errors."""

from medical_diffusion_components.evaluation.comparison import PROTOCOL, Comparison, VolumeSet
from medical_diffusion_components.evaluation.features import FeatureReader
from medical_diffusion_components.evaluation.spaces import AnatomySpace, SliceSpace, default_spaces

__all__ = [
    "PROTOCOL",
    "AnatomySpace",
    "Comparison",
    "FeatureReader",
    "SliceSpace",
    "VolumeSet",
    "default_spaces",
]
