"""What leaves the house: weights that a bundle comes with."""

from medical_diffusion_components.release.released_weights import release_weights

__all__ = ["release_weights"]
