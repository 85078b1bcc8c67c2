"""Training and evaluation loops."""

from medical_diffusion_components.engines.alpha_wgan_trainer import AlphaWGANTrainer
from medical_diffusion_components.engines.autocast import AutocastInferer
from medical_diffusion_components.engines.inpainting_trainer import InpaintingEvaluator, InpaintingTrainer
from medical_diffusion_components.engines.precision import fast_bfloat16
from medical_diffusion_components.engines.vqgan_trainer import VQGANEvaluator, VQGANTrainer

__all__ = [
    "AlphaWGANTrainer",
    "AutocastInferer",
    "InpaintingEvaluator",
    "InpaintingTrainer",
    "VQGANEvaluator",
    "VQGANTrainer",
    "fast_bfloat16",
]
