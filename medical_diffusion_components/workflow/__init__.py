"""What a bundle's configuration needs to know about where it runs: its own folder, its stages, its settings."""

from medical_diffusion_components.workflow.lookup import bundle_modality, bundle_root, bundle_version
from medical_diffusion_components.workflow.overrides import (
    changed_settings,
    check_choice,
    check_overrides,
    check_unused,
)
from medical_diffusion_components.workflow.run_settings import FOLDERS, PLACES, changes, settings, without_places
from medical_diffusion_components.workflow.stages import ensure_first_stage, run_config, say_weights, start_run

__all__ = [
    "FOLDERS",
    "PLACES",
    "bundle_modality",
    "bundle_root",
    "bundle_version",
    "changed_settings",
    "changes",
    "check_choice",
    "check_overrides",
    "check_unused",
    "ensure_first_stage",
    "run_config",
    "say_weights",
    "settings",
    "start_run",
    "without_places",
]
