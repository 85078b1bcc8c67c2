"""Transforms of training and inference."""

from medical_diffusion_components.transforms.check_labels import CheckLabels, CheckLabelsd
from medical_diffusion_components.transforms.check_volume import CheckVolume, CheckVolumed
from medical_diffusion_components.transforms.load_latent import RandLoadLatent, RandLoadLatentd
from medical_diffusion_components.transforms.load_volume import LoadVolume, LoadVolumed
from medical_diffusion_components.transforms.name_output import NameOutputd, output_name
from medical_diffusion_components.transforms.paste_patches import PastePatches, PastePatchesd
from medical_diffusion_components.transforms.rand_mask_patches import MaskedVolume, RandMaskPatches, RandMaskPatchesd
from medical_diffusion_components.transforms.rand_scale_intensity import (
    RandScaleAboveBackground,
    RandScaleAboveBackgroundd,
)
from medical_diffusion_components.transforms.rand_shift import RandShift
from medical_diffusion_components.transforms.rand_torchio import RandTorchIOd
from medical_diffusion_components.transforms.scale_as_prepared import ScaleAsPrepared, ScaleAsPreparedd
from medical_diffusion_components.transforms.spacing_affine import SpacingAffine, SpacingAffined
from medical_diffusion_components.transforms.volume_error import VolumeError
from medical_diffusion_components.transforms.whole_file_writer import WholeFileWriter

__all__ = [
    "CheckLabels",
    "CheckLabelsd",
    "CheckVolume",
    "CheckVolumed",
    "LoadVolume",
    "LoadVolumed",
    "MaskedVolume",
    "NameOutputd",
    "PastePatches",
    "PastePatchesd",
    "RandLoadLatent",
    "RandLoadLatentd",
    "RandMaskPatches",
    "RandMaskPatchesd",
    "RandScaleAboveBackground",
    "RandScaleAboveBackgroundd",
    "RandShift",
    "RandTorchIOd",
    "ScaleAsPrepared",
    "ScaleAsPreparedd",
    "SpacingAffine",
    "SpacingAffined",
    "VolumeError",
    "WholeFileWriter",
    "output_name",
]
