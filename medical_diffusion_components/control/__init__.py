"""Masks in, pairs out: a control branch by which a label map decides what a finished generator draws."""

from medical_diffusion_components.control.branch import ControlBranch, ControlledDenoiser
from medical_diffusion_components.control.control_montage import ControlMontage
from medical_diffusion_components.control.mask_channels import (
    MaskChannels,
    MaskChannelsd,
    num_mask_channels,
    signed_distance,
)
from medical_diffusion_components.control.mask_obedience import MaskObedience, Segmentation, class_dice, listed_pairs
from medical_diffusion_components.control.masks import AUGMENTATIONS, AskedMask, mask_files, read_asked_mask, varied
from medical_diffusion_components.control.pairs import PairSampling, PairWriter
from medical_diffusion_components.control.sampling import draw_controlled, load_control
from medical_diffusion_components.control.training_pairs import (
    ControlInferer,
    RandLoadPaird,
    WithMask,
    cache_masks,
    label_classes,
    one_process,
    paired_cases,
)

__all__ = [
    "AUGMENTATIONS",
    "AskedMask",
    "ControlBranch",
    "ControlInferer",
    "ControlMontage",
    "ControlledDenoiser",
    "MaskChannels",
    "MaskChannelsd",
    "MaskObedience",
    "PairSampling",
    "PairWriter",
    "RandLoadPaird",
    "Segmentation",
    "WithMask",
    "cache_masks",
    "class_dice",
    "draw_controlled",
    "label_classes",
    "listed_pairs",
    "load_control",
    "mask_files",
    "num_mask_channels",
    "one_process",
    "paired_cases",
    "read_asked_mask",
    "signed_distance",
    "varied",
]
