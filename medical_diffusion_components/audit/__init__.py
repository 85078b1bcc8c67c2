"""Whether synthetic volumes are copies of training volumes: a calibrated test, a release filter, membership inference."""

from medical_diffusion_components.audit.audit_report import AuditReport, audit_headline
from medical_diffusion_components.audit.conformal import (
    FlaggedShare,
    clopper_pearson,
    conformal_p,
    flagged_share,
    smallest_calibration,
)
from medical_diffusion_components.audit.copy_audit import AuditResult, CopyAudit, Memorised, PreparedAudit
from medical_diffusion_components.audit.copy_test import NOT_ANONYMOUS, VERDICTS, CopyTest, Verdict, are_copies
from medical_diffusion_components.audit.encoder import (
    ContrastiveEncoder,
    ContrastiveTraining,
    embed,
    nt_xent,
    trained_encoder,
)
from medical_diffusion_components.audit.latent_share import latent_holdout_share
from medical_diffusion_components.audit.membership import (
    Membership,
    area_under_curve,
    denoising_losses,
    membership,
    membership_scores,
)
from medical_diffusion_components.audit.membership_watch import MembershipWatch
from medical_diffusion_components.audit.proximity import (
    HoldoutShare,
    PublishedRule,
    data_copying_z,
    holdout_share,
    published_rule,
)
from medical_diffusion_components.audit.refusals import AuditError
from medical_diffusion_components.audit.release_filter import ReleaseFilter
from medical_diffusion_components.audit.similarity import Nearest, TrainingBank, merge_groups, similar_pairs
from medical_diffusion_components.audit.views import RandomViews, reduce_volumes, reduced_shape
from medical_diffusion_components.audit.volumes import Preprocessing, read_volumes

__all__ = [
    "NOT_ANONYMOUS",
    "VERDICTS",
    "AuditError",
    "AuditReport",
    "AuditResult",
    "ContrastiveEncoder",
    "ContrastiveTraining",
    "CopyAudit",
    "CopyTest",
    "FlaggedShare",
    "HoldoutShare",
    "Membership",
    "MembershipWatch",
    "Memorised",
    "Nearest",
    "PreparedAudit",
    "Preprocessing",
    "PublishedRule",
    "RandomViews",
    "ReleaseFilter",
    "TrainingBank",
    "Verdict",
    "are_copies",
    "area_under_curve",
    "audit_headline",
    "clopper_pearson",
    "conformal_p",
    "data_copying_z",
    "denoising_losses",
    "embed",
    "flagged_share",
    "holdout_share",
    "latent_holdout_share",
    "membership",
    "membership_scores",
    "merge_groups",
    "nt_xent",
    "published_rule",
    "read_volumes",
    "reduce_volumes",
    "reduced_shape",
    "similar_pairs",
    "smallest_calibration",
    "trained_encoder",
]
