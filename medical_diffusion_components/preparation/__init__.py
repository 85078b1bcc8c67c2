"""From raw downloads to volumes of one size: who is who, which scan, which steps, what happened to each."""

from medical_diffusion_components.preparation.case import CaseResult, finished_result, prepare_case, start_worker
from medical_diffusion_components.preparation.inventory import Inventory, RawCase, Selection, take_inventory
from medical_diffusion_components.preparation.manifests import Manifest, manifest_hash, read_manifest, write_manifest
from medical_diffusion_components.preparation.preparation import Preparation, TooManyRefused, run_or_exit
from medical_diffusion_components.preparation.raw_cases import cases_of_folder, cases_of_manifest, inventory_of_manifest
from medical_diffusion_components.preparation.report import PreparationReport, write_report
from medical_diffusion_components.preparation.scan_remarks import RemarkOnScand, modality_remark, trained_modality

__all__ = [
    "CaseResult",
    "Inventory",
    "Manifest",
    "Preparation",
    "PreparationReport",
    "RawCase",
    "RemarkOnScand",
    "Selection",
    "TooManyRefused",
    "cases_of_folder",
    "cases_of_manifest",
    "finished_result",
    "inventory_of_manifest",
    "manifest_hash",
    "modality_remark",
    "prepare_case",
    "read_manifest",
    "run_or_exit",
    "start_worker",
    "take_inventory",
    "trained_modality",
    "write_manifest",
    "write_report",
]
