"""The transforms that `prepare.yaml` chains, one idea each."""

from medical_diffusion_components.preparation.steps.breast_outline import BreastOutline, BreastOutlined
from medical_diffusion_components.preparation.steps.check_hounsfield import CheckHounsfield, CheckHounsfieldd
from medical_diffusion_components.preparation.steps.check_skull import CheckSkull, CheckSkulld, SkullSigns
from medical_diffusion_components.preparation.steps.crop_to_cube import CropToCube, CropToCubed
from medical_diffusion_components.preparation.steps.fill_padding import FillPadding, FillPaddingd
from medical_diffusion_components.preparation.steps.load_mask import LoadMask, LoadMaskd
from medical_diffusion_components.preparation.steps.load_scan import LoadScan, LoadScand, RawScan
from medical_diffusion_components.preparation.steps.load_segments import LoadSegments, LoadSegmentsd, segment_paths
from medical_diffusion_components.preparation.steps.load_slice_stack import LoadSliceStack
from medical_diffusion_components.preparation.steps.resample import Resample, Resampled
from medical_diffusion_components.preparation.steps.run_command import RunCommand, RunCommandd
from medical_diffusion_components.preparation.steps.scale_to_range import ScaleToRange, ScaleToRanged
from medical_diffusion_components.preparation.steps.split_breasts import BreastHalves, SplitBreasts, SplitBreastsd

__all__ = [
    "BreastHalves",
    "BreastOutline",
    "BreastOutlined",
    "CheckHounsfield",
    "CheckHounsfieldd",
    "CheckSkull",
    "CheckSkulld",
    "CropToCube",
    "CropToCubed",
    "FillPadding",
    "FillPaddingd",
    "LoadMask",
    "LoadMaskd",
    "LoadScan",
    "LoadScand",
    "LoadSegments",
    "LoadSegmentsd",
    "LoadSliceStack",
    "RawScan",
    "Resample",
    "Resampled",
    "RunCommand",
    "RunCommandd",
    "ScaleToRange",
    "ScaleToRanged",
    "SkullSigns",
    "SplitBreasts",
    "SplitBreastsd",
    "segment_paths",
]
