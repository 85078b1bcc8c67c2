"""What is written for people: pictures, reports and synthetic volumes."""

from medical_diffusion_components.reports.drawing import montage, save_montage
from medical_diffusion_components.reports.evaluation_report import EvaluationReport
from medical_diffusion_components.reports.montages import ReconstructionMontage, SampleMontage
from medical_diffusion_components.reports.output_files import OutputFiles
from medical_diffusion_components.reports.segmentation_montage import SegmentationMontage, SegmentationPictures
from medical_diffusion_components.reports.segmentation_note import SegmentationNote
from medical_diffusion_components.reports.segmentation_report import (
    MeanWithInterval,
    SegmentationReport,
    mean_over_patients,
)
from medical_diffusion_components.reports.volume_writer import SyntheticVolumeWriter, VolumeFormat

__all__ = [
    "EvaluationReport",
    "MeanWithInterval",
    "OutputFiles",
    "ReconstructionMontage",
    "SampleMontage",
    "SegmentationMontage",
    "SegmentationNote",
    "SegmentationPictures",
    "SegmentationReport",
    "SyntheticVolumeWriter",
    "VolumeFormat",
    "mean_over_patients",
    "montage",
    "save_montage",
]
