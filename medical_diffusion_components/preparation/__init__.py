"""From raw downloads to volumes of one size: who is who, which scan, which steps, what happened to each."""

from medical_diffusion_components.preparation.case import CaseResult, finished_result, prepare_case, start_worker
from medical_diffusion_components.preparation.manifests import Manifest, manifest_hash, read_manifest, write_manifest
from medical_diffusion_components.preparation.preparation import Preparation, TooManyRefused, run_or_exit
from medical_diffusion_components.preparation.raw_cases import RawCase, cases_of_folder, cases_of_manifest, index_series
from medical_diffusion_components.preparation.report import PreparationReport, write_report

__all__ = [
    "CaseResult",
    "Manifest",
    "Preparation",
    "PreparationReport",
    "RawCase",
    "TooManyRefused",
    "cases_of_folder",
    "cases_of_manifest",
    "finished_result",
    "index_series",
    "manifest_hash",
    "prepare_case",
    "read_manifest",
    "run_or_exit",
    "start_worker",
    "write_manifest",
    "write_report",
]
