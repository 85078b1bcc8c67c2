"""Is a generator any good? From folders of volumes to a table with floors and errors."""

from medical_diffusion_components.evaluation.comparison import PROTOCOL, Comparison, VolumeSet
from medical_diffusion_components.evaluation.copies import AuditedPair, audited_pairs, of_these_volumes
from medical_diffusion_components.evaluation.eval_metrics import record_audit, record_eval_metrics
from medical_diffusion_components.evaluation.evaluation_page import EvaluationPage
from medical_diffusion_components.evaluation.feature_space import FeatureSpace
from medical_diffusion_components.evaluation.features import FeatureReader
from medical_diffusion_components.evaluation.generator_evaluation import GeneratorEvaluation, process_pool
from medical_diffusion_components.evaluation.obedience import Obedience, ObedienceFound
from medical_diffusion_components.evaluation.radiomics import RadiomicsSpace
from medical_diffusion_components.evaluation.report import headline, markdown
from medical_diffusion_components.evaluation.spaces import AnatomySpace, NetworkSpace, SliceSpace, default_spaces
from medical_diffusion_components.evaluation.volume_sets import (
    folder_cases,
    guided_cases,
    sampled_cases,
    write_reconstructions,
)

__all__ = [
    "PROTOCOL",
    "AnatomySpace",
    "AuditedPair",
    "Comparison",
    "EvaluationPage",
    "FeatureReader",
    "FeatureSpace",
    "GeneratorEvaluation",
    "NetworkSpace",
    "Obedience",
    "ObedienceFound",
    "RadiomicsSpace",
    "SliceSpace",
    "VolumeSet",
    "audited_pairs",
    "default_spaces",
    "folder_cases",
    "guided_cases",
    "headline",
    "markdown",
    "of_these_volumes",
    "process_pool",
    "record_audit",
    "record_eval_metrics",
    "sampled_cases",
    "write_reconstructions",
]
