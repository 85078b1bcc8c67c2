"""Losses of the two stages and of inpainting."""

from medical_diffusion_components.losses.adversarial import (
    AdversarialSchedule,
    hinge_discriminator_loss,
    hinge_generator_loss,
)
from medical_diffusion_components.losses.denoising import DenoisingLoss
from medical_diffusion_components.losses.feature_matching import feature_matching_loss
from medical_diffusion_components.losses.inpainting import InpaintingLoss, InpaintingTerms
from medical_diffusion_components.losses.ms_ssim import MSSSIMLoss, scale_sizes
from medical_diffusion_components.losses.perceptual import EfficientNetLite0Features, PerceptualLoss
from medical_diffusion_components.losses.slices import random_slices
from medical_diffusion_components.losses.terms import total
from medical_diffusion_components.losses.vqgan import DiscriminatorPair, VQGANLoss
from medical_diffusion_components.losses.wgan import AlphaWGANLoss, gradient_penalty

__all__ = [
    "AdversarialSchedule",
    "AlphaWGANLoss",
    "DenoisingLoss",
    "DiscriminatorPair",
    "EfficientNetLite0Features",
    "InpaintingLoss",
    "InpaintingTerms",
    "MSSSIMLoss",
    "PerceptualLoss",
    "VQGANLoss",
    "feature_matching_loss",
    "gradient_penalty",
    "hinge_discriminator_loss",
    "hinge_generator_loss",
    "random_slices",
    "scale_sizes",
    "total",
]
