"""Invented subjects that make every bundle run without patients."""

from medical_diffusion_components.cohorts.breast import breast_phantom
from medical_diffusion_components.cohorts.chest import chest_phantom
from medical_diffusion_components.cohorts.embedded import more_held_out_cases, resolve_dataset
from medical_diffusion_components.cohorts.knee import knee_phantom
from medical_diffusion_components.cohorts.phantoms import PHANTOM_LICENCE, PHANTOM_NOTICE, write_phantom_cohort
from medical_diffusion_components.cohorts.template import (
    TEMPLATE_COHORT_NOTICE,
    TemplateSubject,
    template_subject,
    write_template_cohort,
)

__all__ = [
    "PHANTOM_LICENCE",
    "PHANTOM_NOTICE",
    "TEMPLATE_COHORT_NOTICE",
    "TemplateSubject",
    "breast_phantom",
    "chest_phantom",
    "knee_phantom",
    "more_held_out_cases",
    "resolve_dataset",
    "template_subject",
    "write_phantom_cohort",
    "write_template_cohort",
]
