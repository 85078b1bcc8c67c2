from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.metrics import MMDMetric

from medical_diffusion_components.chance import numpy_generator
from medical_diffusion_components.metrics.mmd import (
    GaussianKernel,
    GaussianMixture,
    kernel_matrices,
    median_distance,
    mmd_squared,
    permutation_p,
    polynomial_kernel,
)

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(5, 3)), RNG.normal(0.5, 2.0, size=(7, 3))


def gaussian_pair(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.exp(-sum((p - q) ** 2 for p, q in zip(a, b)) / (2 * 1.7**2)))


def polynomial_pair(a: np.ndarray, b: np.ndarray) -> float:
    return float((sum(p * q for p, q in zip(a, b)) / 3 + 1) ** 3)


def brute_force(k, x: np.ndarray, y: np.ndarray) -> float:
    xx = [k(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j]
    yy = [k(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j]
    return np.mean(xx) + np.mean(yy) - 2 * np.mean([k(a, b) for a in x for b in y])


KERNELS = [(GaussianKernel(1.7), gaussian_pair), (polynomial_kernel, polynomial_pair)]


@pytest.mark.parametrize("kernel, pair", KERNELS, ids=["gaussian", "polynomial"])
def test_equals_the_sums_over_pairs(kernel, pair):
    kernels = kernel_matrices(X, Y, kernel)
    assert mmd_squared(kernels) == pytest.approx(brute_force(pair, X, Y))
    x, y = np.array([0, 3, 4]), np.array([6, 1])
    assert mmd_squared(kernels, x, y) == pytest.approx(brute_force(pair, X[x], Y[y]))


def test_with_a_linear_kernel_it_is_monais():
    ours = mmd_squared(kernel_matrices(X, Y[:5], lambda a, b: a @ b.T))
    theirs = MMDMetric()(torch.from_numpy(X)[:, :, None], torch.from_numpy(Y[:5])[:, :, None])
    assert ours == pytest.approx(float(theirs))


@pytest.mark.parametrize("mean, std", [(0.0, 1.0), (0.7, 0.5)])
def test_small_samples_of_two_normals_have_the_closed_form_on_average(mean, std):
    # E k(x, y) = b / sqrt(b^2 + v) exp(-d^2 / (2 (b^2 + v))), with v the sum of the variances and d the means' difference
    def expected(v: float, d: float) -> float:
        return 1.3 / np.sqrt(1.69 + v) * np.exp(-(d**2) / (2 * (1.69 + v)))

    exact = expected(2, 0) + expected(2 * std**2, 0) - 2 * expected(1 + std**2, mean)
    rng = np.random.default_rng(1)
    draws = [(rng.normal(size=(4, 1)), rng.normal(mean, std, size=(6, 1))) for _ in range(1500)]
    found = [mmd_squared(kernel_matrices(x, y, GaussianKernel(1.3))) for x, y in draws]
    assert abs(np.mean(found) - exact) < 4 * np.std(found) / 1500**0.5


def test_median_distance_leaves_out_the_distance_to_oneself():
    x = np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])  # distances 5, 1 and sqrt(18)
    assert median_distance(x) == pytest.approx(18**0.5)


@pytest.mark.parametrize(
    "x, y, message",
    [
        (X, Y[:, :2], r"got shapes \(5, 3\) and \(7, 2\)"),
        (X[:1], Y, "n, m > 1"),
        (X, np.where(Y == Y[2, 1], np.nan, Y), "finite"),
    ],
)
def test_features_that_cannot_be_compared_are_refused(x, y, message):
    with pytest.raises(ValueError, match=message):
        kernel_matrices(x, y)


def test_a_permutation_test_is_uniform_for_equal_and_small_for_unlike_sets() -> None:
    rng = np.random.default_rng(0)
    groups = np.arange(12)
    values = []
    for _ in range(40):
        x, y = rng.normal(size=(2, 12, 3))
        values.append(permutation_p(kernel_matrices(x, y, GaussianMixture(1.5)), groups, groups, 99))
    assert 0.35 < np.mean(values) < 0.65 and min(values) >= 0.01
    far = kernel_matrices(rng.normal(size=(12, 3)), rng.normal(size=(12, 3)) + 2, GaussianMixture(1.5))
    assert permutation_p(far, groups, groups, 99) == 0.01


def test_divisions_that_are_as_far_apart_count_as_such() -> None:
    kernels = kernel_matrices(np.zeros((4, 3)), np.zeros((5, 3)), GaussianMixture(1.5))
    assert permutation_p(kernels, np.arange(4), np.arange(5), 99) == 1.0


def test_divisions_are_as_far_apart_as_sets_of_their_members_are() -> None:
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(7, 3)), rng.normal(0.2, 1, size=(5, 3))
    kernels, members = kernel_matrices(x, y), np.concatenate([x, y])
    drawing, count = numpy_generator(4), 0
    for _ in range(200):
        order = np.argsort(drawing.permutation(12), kind="stable")
        count += mmd_squared(kernel_matrices(members[order[:7]], members[order[7:]])) >= mmd_squared(kernels) - 1e-12
    assert 10 < count < 190
    assert permutation_p(kernels, np.arange(7), np.arange(5), 200, seed=4) == (1 + count) / 201


def test_volumes_of_one_patient_stay_together_in_permutations() -> None:
    """Twelve copies of two patients a set look far apart volume by volume, and are not patient by patient."""
    rng = np.random.default_rng(1)
    x, y = (np.repeat(rng.normal(size=(2, 3)), 6, axis=0) for _ in range(2))
    kernels = kernel_matrices(x, y, GaussianMixture(1.5))
    apart, together = np.arange(12), np.repeat(np.arange(2), 6)
    assert permutation_p(kernels, apart, apart, 99) < 0.05 < permutation_p(kernels, together, together, 99)


def test_the_mixture_is_the_mean_of_five_gaussians() -> None:
    x, y = np.random.default_rng(2).normal(size=(2, 4, 3))
    squares = np.square(x[:, None] - y[None]).sum(-1)
    expected = np.mean([np.exp(-squares / (2 * share * 4.0)) for share in (0.25, 0.5, 1, 2, 4)], axis=0)
    np.testing.assert_allclose(GaussianMixture(2.0)(x, y), expected)
