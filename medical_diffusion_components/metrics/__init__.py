"""Measures of quality and of variety, with their errors."""

from medical_diffusion_components.metrics.bootstrap import Interval, bootstrap_mean
from medical_diffusion_components.metrics.codebook_usage import CodebookPerplexity
from medical_diffusion_components.metrics.diversity import mean_similarity, pair_similarities
from medical_diffusion_components.metrics.jackknife import Estimate, jackknife
from medical_diffusion_components.metrics.label_efficiency import (
    dice_by_arm,
    label_table,
    plot_labels,
    write_label_study,
)
from medical_diffusion_components.metrics.mmd import (
    GaussianKernel,
    KernelMatrices,
    kernel_matrices,
    median_distance,
    mmd_squared,
    polynomial_kernel,
)
from medical_diffusion_components.metrics.sample_average import SampleAverage
from medical_diffusion_components.metrics.slice_features import SliceFeatures
from medical_diffusion_components.metrics.surface_distance import SpacedHausdorffDistance, SpacedSurfaceDistance

__all__ = [
    "CodebookPerplexity",
    "Estimate",
    "GaussianKernel",
    "Interval",
    "KernelMatrices",
    "SampleAverage",
    "SliceFeatures",
    "SpacedHausdorffDistance",
    "SpacedSurfaceDistance",
    "bootstrap_mean",
    "dice_by_arm",
    "jackknife",
    "kernel_matrices",
    "label_table",
    "mean_similarity",
    "median_distance",
    "mmd_squared",
    "pair_similarities",
    "plot_labels",
    "polynomial_kernel",
    "write_label_study",
]
