"""Shared components of the Medical Diffusion MONAI bundles.

Every bundle under ``bundles/`` is configuration; what the configurations instantiate is here: networks, losses,
engines, handlers, transforms, data and metrics. Nothing in this package knows the name of a dataset.
"""

__version__ = "0.2.0"
