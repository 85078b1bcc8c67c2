"""Does pre-training help? The study of segmentation by number of labels: its runs, table and plot."""

from medical_diffusion_components.label_study.label_efficiency import (
    dice_by_arm,
    label_table,
    plot_labels,
    write_label_study,
)
from medical_diffusion_components.label_study.study import Arm, LabelStudy, LabelStudyRun, num_patients

__all__ = [
    "Arm",
    "LabelStudy",
    "LabelStudyRun",
    "dice_by_arm",
    "label_table",
    "num_patients",
    "plot_labels",
    "write_label_study",
]
