"""A check of one's own data before `prepare` and before training: what they would do, and what they would refuse."""

from medical_diffusion_components.preflight.check_report import CheckReport, write_check
from medical_diffusion_components.preflight.contact_sheet import SheetCell, contact_sheet
from medical_diffusion_components.preflight.data_check import DataCheck, check_or_exit
from medical_diffusion_components.preflight.headers import ScanFacts, read_facts
from medical_diffusion_components.preflight.prepared import TrainingCheck, draw_prepared, warn_of_absent_classes
from medical_diffusion_components.preflight.training_memory import (
    diffusion_gb,
    first_stage_gb,
    swin_unetr_gb,
    training_memory,
)

__all__ = [
    "CheckReport",
    "DataCheck",
    "ScanFacts",
    "SheetCell",
    "TrainingCheck",
    "check_or_exit",
    "contact_sheet",
    "diffusion_gb",
    "draw_prepared",
    "first_stage_gb",
    "read_facts",
    "swin_unetr_gb",
    "training_memory",
    "warn_of_absent_classes",
    "write_check",
]
