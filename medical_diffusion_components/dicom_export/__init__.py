"""Results as hospitals read them: synthetic volumes and edited scans as DICOM series, segmentations as DICOM SEG.

:class:`DicomCases` and :class:`SegmentationObjects` need highdicom, an optional package, and are imported from
``dicom_export.segmentation_objects``.
"""

from medical_diffusion_components.dicom_export.edited_series import EditedSeries
from medical_diffusion_components.dicom_export.formats import is_dicom
from medical_diffusion_components.dicom_export.synthetic_series import SyntheticSeries

__all__ = ["EditedSeries", "SyntheticSeries", "is_dicom"]
