"""Measures of quality and of variety, with their errors."""

from medical_diffusion_components.metrics.bootstrap import Interval, bootstrap_mean
from medical_diffusion_components.metrics.codebook_usage import CodebookPerplexity
from medical_diffusion_components.metrics.diversity import mean_similarity, pair_similarities, published_ms_ssim
from medical_diffusion_components.metrics.effective_number import effective_number
from medical_diffusion_components.metrics.frechet import FrechetDistance, frechet_distance
from medical_diffusion_components.metrics.intensity import intensity_distance, intensity_quantiles
from medical_diffusion_components.metrics.jackknife import Estimate, group_jackknife, jackknife
from medical_diffusion_components.metrics.mmd import (
    GaussianKernel,
    GaussianMixture,
    KernelMatrices,
    kernel_matrices,
    median_distance,
    mmd_squared,
    permutation_p,
    polynomial_kernel,
)
from medical_diffusion_components.metrics.neighbours import NeighbourMeasures, expected_coverage, neighbour_measures
from medical_diffusion_components.metrics.sample_average import SampleAverage
from medical_diffusion_components.metrics.surface_distance import SpacedHausdorffDistance, SpacedSurfaceDistance

__all__ = [
    "CodebookPerplexity",
    "Estimate",
    "FrechetDistance",
    "GaussianKernel",
    "GaussianMixture",
    "Interval",
    "KernelMatrices",
    "NeighbourMeasures",
    "SampleAverage",
    "SpacedHausdorffDistance",
    "SpacedSurfaceDistance",
    "bootstrap_mean",
    "effective_number",
    "expected_coverage",
    "frechet_distance",
    "group_jackknife",
    "intensity_distance",
    "intensity_quantiles",
    "jackknife",
    "kernel_matrices",
    "mean_similarity",
    "median_distance",
    "mmd_squared",
    "neighbour_measures",
    "pair_similarities",
    "permutation_p",
    "polynomial_kernel",
    "published_ms_ssim",
]
