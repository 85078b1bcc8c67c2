"""The diffusion process: sampling, the noise it starts from, and what a training step draws."""

from medical_diffusion_components.diffusion.conditional_inferer import ConditionalInferer
from medical_diffusion_components.diffusion.cosine_schedule import CosineScheduler, cosine_betas
from medical_diffusion_components.diffusion.generator import LatentDiffusionGenerator
from medical_diffusion_components.diffusion.latent_scaling import LATENT_SCALINGS, LatentScaling
from medical_diffusion_components.diffusion.noise_latent import NoiseLatent, NoiseLatentd
from medical_diffusion_components.diffusion.prepare_batch import HeldOutPrepareBatch, TrainingPrepareBatch
from medical_diffusion_components.diffusion.rectified_flow import FlowScheduler, noise_scheduler
from medical_diffusion_components.diffusion.timesteps import evenly_in_log_snr, evenly_in_time, half_log_snr

__all__ = [
    "LATENT_SCALINGS",
    "ConditionalInferer",
    "CosineScheduler",
    "FlowScheduler",
    "HeldOutPrepareBatch",
    "LatentDiffusionGenerator",
    "LatentScaling",
    "NoiseLatent",
    "NoiseLatentd",
    "TrainingPrepareBatch",
    "cosine_betas",
    "evenly_in_log_snr",
    "evenly_in_time",
    "half_log_snr",
    "noise_scheduler",
]
