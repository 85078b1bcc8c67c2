"""Masks in, pairs out: a control branch by which a label map decides what a generator draws, and synthesised masks."""

from medical_diffusion_components.control.branch import ControlBranch, ControlledDenoiser
from medical_diffusion_components.control.control_montage import ControlMontage
from medical_diffusion_components.control.mask_channels import (
    MaskChannels,
    MaskChannelsd,
    num_mask_channels,
    signed_distance,
)
from medical_diffusion_components.control.mask_codec import MaskCodec, MaskDistancesd, fitted_codec
from medical_diffusion_components.control.mask_drawing import MaskMontage, MaskSampling, drawn_masks
from medical_diffusion_components.control.mask_evaluation import MaskEvaluation, mean_dice, nearest_masks
from medical_diffusion_components.control.mask_obedience import MaskObedience, Segmentation, class_dice, listed_pairs
from medical_diffusion_components.control.masks import (
    AUGMENTATIONS,
    AskedMask,
    chosen_masks,
    mask_files,
    read_asked_mask,
    varied,
)
from medical_diffusion_components.control.pairs import PairSampling, PairWriter
from medical_diffusion_components.control.sampling import draw_controlled, load_control
from medical_diffusion_components.control.structures import (
    cleaned,
    implausible,
    label_maps,
    load_labels,
    structure_limits,
    training_structures,
)
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
    "MaskCodec",
    "MaskDistancesd",
    "MaskEvaluation",
    "MaskMontage",
    "MaskObedience",
    "MaskSampling",
    "PairSampling",
    "PairWriter",
    "RandLoadPaird",
    "Segmentation",
    "WithMask",
    "cache_masks",
    "chosen_masks",
    "class_dice",
    "cleaned",
    "draw_controlled",
    "drawn_masks",
    "fitted_codec",
    "implausible",
    "label_classes",
    "label_maps",
    "listed_pairs",
    "load_control",
    "load_labels",
    "mask_files",
    "mean_dice",
    "nearest_masks",
    "num_mask_channels",
    "one_process",
    "paired_cases",
    "read_asked_mask",
    "signed_distance",
    "structure_limits",
    "training_structures",
    "varied",
]
