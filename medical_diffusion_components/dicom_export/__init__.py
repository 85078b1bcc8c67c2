"""Results as hospitals read them: synthetic volumes as DICOM series."""

from medical_diffusion_components.dicom_export.synthetic_series import SyntheticSeries

__all__ = ["SyntheticSeries"]
