"""What is published: the weights that a bundle comes with, and the files of a release."""

from medical_diffusion_components.release.bundle_archive import build_bundle, write_zip
from medical_diffusion_components.release.distributions import build_distributions
from medical_diffusion_components.release.model_card import front_matter, model_card
from medical_diffusion_components.release.released_weights import release_weights
from medical_diffusion_components.release.torchscript import scripted
from medical_diffusion_components.release.vendored import vendored_files, vendored_name

__all__ = [
    "build_bundle",
    "build_distributions",
    "front_matter",
    "model_card",
    "release_weights",
    "scripted",
    "vendored_files",
    "vendored_name",
    "write_zip",
]
