"""Networks: 3D VQ-GAN with its codebook and discriminators, the denoiser, and what Swin UNETR needs."""

from medical_diffusion_components.networks import fast
from medical_diffusion_components.networks.alpha_wgan import (
    AlphaWGANGenerator,
    CodeDiscriminator,
    VolumeDiscriminator,
    VolumeEncoder,
)
from medical_diffusion_components.networks.codebook import CodebookOutput, EMACodebook
from medical_diffusion_components.networks.denoiser import Denoiser
from medical_diffusion_components.networks.discriminators import DiscriminatorOutput, PatchDiscriminator
from medical_diffusion_components.networks.image_features import EfficientNetFeatures
from medical_diffusion_components.networks.scriptable_swin import ScriptableSwinUNETR
from medical_diffusion_components.networks.swin import checked_window
from medical_diffusion_components.networks.sync_batch_norm import GlobalBatchNorm, sync_batch_norms
from medical_diffusion_components.networks.transfer import TransferReport, start_from, transfer_weights
from medical_diffusion_components.networks.vqgan import (
    VQGAN,
    Decoder,
    Encoder,
    VQGANOutput,
    check_divisible,
    stage_strides,
)

__all__ = [
    "VQGAN",
    "AlphaWGANGenerator",
    "CodeDiscriminator",
    "CodebookOutput",
    "Decoder",
    "Denoiser",
    "DiscriminatorOutput",
    "EMACodebook",
    "EfficientNetFeatures",
    "Encoder",
    "GlobalBatchNorm",
    "PatchDiscriminator",
    "ScriptableSwinUNETR",
    "TransferReport",
    "VQGANOutput",
    "VolumeDiscriminator",
    "VolumeEncoder",
    "check_divisible",
    "checked_window",
    "fast",
    "stage_strides",
    "start_from",
    "sync_batch_norms",
    "transfer_weights",
]
