"""A DICOM series to one volume, or a refusal with its reason; nothing else of this package is needed.

The room's face is :mod:`~medical_diffusion_components.dicom.series`. It is imported by its own path, for pydicom is an
optional package and :class:`~medical_diffusion_components.dicom.refusal.Refusal` is named where there is none.
"""
