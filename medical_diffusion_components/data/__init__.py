"""What training reads: cases and their splits, loading that can resume, cached latents, volumes sampled on the fly."""

from medical_diffusion_components.data.condition_requests import RequestedConditions, condition_strata
from medical_diffusion_components.data.conditions import Conditions
from medical_diffusion_components.data.datasets import (
    case_weights,
    check_spacing,
    data_fingerprint,
    describe_data,
    load_cases,
    median_spacing,
    nifti_files,
)
from medical_diffusion_components.data.latents import cache_latents, held_out_draws, read_latents
from medical_diffusion_components.data.loading import RepeatingSampler, ResumableSampler, SeededDataset
from medical_diffusion_components.data.sampled_volumes import VolumeSampler
from medical_diffusion_components.data.segmentation_cases import (
    describe_cases,
    is_served,
    labelled_cases,
    labelled_subset,
    volumes_to_segment,
    with_pairs,
)
from medical_diffusion_components.data.sides import axes_to_flip, sided_classes
from medical_diffusion_components.data.splits import SPLITS, split_patients
from medical_diffusion_components.data.training_of_weights import trained_on, without_hashes
from medical_diffusion_components.data.training_volumes import TrainingVolumes, training_volumes
from medical_diffusion_components.data.volume_notes import is_edited, is_synthetic

__all__ = [
    "SPLITS",
    "Conditions",
    "RepeatingSampler",
    "RequestedConditions",
    "ResumableSampler",
    "SeededDataset",
    "TrainingVolumes",
    "VolumeSampler",
    "axes_to_flip",
    "cache_latents",
    "case_weights",
    "check_spacing",
    "condition_strata",
    "data_fingerprint",
    "describe_cases",
    "describe_data",
    "held_out_draws",
    "is_edited",
    "is_served",
    "is_synthetic",
    "labelled_cases",
    "labelled_subset",
    "load_cases",
    "median_spacing",
    "nifti_files",
    "read_latents",
    "sided_classes",
    "split_patients",
    "trained_on",
    "training_volumes",
    "volumes_to_segment",
    "with_pairs",
    "without_hashes",
]
