"""Does pre-training help? The study of segmentation by number of labels: its runs, finding, table and plot."""

from medical_diffusion_components.label_study.finding import Finding, Question, find, finding_line, other_comparisons
from medical_diffusion_components.label_study.label_efficiency import (
    SeedDice,
    dice_by_arm,
    label_table,
    plot_labels,
    write_label_study,
)
from medical_diffusion_components.label_study.scales import longer_finetuning, pretraining_length, study_scale
from medical_diffusion_components.label_study.study import (
    Arm,
    LabelStudy,
    LabelStudyRun,
    chosen_arms,
    num_patients,
    numbers_of_patients,
)
from medical_diffusion_components.label_study.study_data import check_study_data
from medical_diffusion_components.label_study.volumes import on_grid_of, smallest_training_split, write_copies

__all__ = [
    "Arm",
    "Finding",
    "LabelStudy",
    "LabelStudyRun",
    "Question",
    "SeedDice",
    "check_study_data",
    "chosen_arms",
    "dice_by_arm",
    "find",
    "finding_line",
    "label_table",
    "longer_finetuning",
    "num_patients",
    "numbers_of_patients",
    "on_grid_of",
    "other_comparisons",
    "plot_labels",
    "pretraining_length",
    "smallest_training_split",
    "study_scale",
    "write_copies",
    "write_label_study",
]
