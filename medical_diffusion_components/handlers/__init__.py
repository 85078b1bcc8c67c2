"""What runs beside a training loop: checkpoints, averages, schedules, progress."""

from medical_diffusion_components.handlers.best_weights import (
    BestWeights,
    ForgetBest,
    KeepUnlessBetter,
    LatestWeights,
    PublishWeights,
    lower_is_better,
)
from medical_diffusion_components.handlers.checkpoint import CheckpointError, TrainingCheckpoint
from medical_diffusion_components.handlers.clip_gradients import ClipGradients
from medical_diffusion_components.handlers.early_stopping import Convergence, StopWhenConverged
from medical_diffusion_components.handlers.ema import ExponentialMovingAverage
from medical_diffusion_components.handlers.first_rank_writer import SilentWriter, first_rank_writer
from medical_diffusion_components.handlers.non_finite import NonFiniteLossError, StopOnNonFinite
from medical_diffusion_components.handlers.optimiser_steps import StepLrSchedule, optimiser_step
from medical_diffusion_components.handlers.post_hoc_ema import AverageSnapshots, post_hoc_average, snapshot_shares
from medical_diffusion_components.handlers.process_mean import MeanOverProcesses
from medical_diffusion_components.handlers.progress import TrainingProgress
from medical_diffusion_components.handlers.seeding import SeedIterations
from medical_diffusion_components.handlers.validation import ValidationWithLastEpoch
from medical_diffusion_components.handlers.warmup_cosine import WarmupCosine

__all__ = [
    "AverageSnapshots",
    "BestWeights",
    "CheckpointError",
    "ClipGradients",
    "Convergence",
    "ExponentialMovingAverage",
    "ForgetBest",
    "KeepUnlessBetter",
    "LatestWeights",
    "MeanOverProcesses",
    "NonFiniteLossError",
    "PublishWeights",
    "SeedIterations",
    "SilentWriter",
    "StepLrSchedule",
    "StopOnNonFinite",
    "StopWhenConverged",
    "TrainingCheckpoint",
    "TrainingProgress",
    "ValidationWithLastEpoch",
    "WarmupCosine",
    "first_rank_writer",
    "lower_is_better",
    "optimiser_step",
    "post_hoc_average",
    "snapshot_shares",
]
