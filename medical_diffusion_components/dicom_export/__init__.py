"""Results as hospitals read them: synthetic volumes and edited scans as DICOM series, segmentations as DICOM SEG.

What writes them needs pydicom or highdicom, optional packages, and is imported from its own file: ``synthetic_series``,
``edited_series`` and ``segmentation_objects``.
"""

from medical_diffusion_components.dicom_export.formats import is_dicom

__all__ = ["is_dicom"]
