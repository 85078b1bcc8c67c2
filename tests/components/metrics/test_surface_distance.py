from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.handlers.ignite_metric import IgniteMetricHandler
from scipy.ndimage import binary_erosion
from scipy.spatial.distance import cdist

from medical_diffusion_components.metrics.surface_distance import SpacedHausdorffDistance, SpacedSurfaceDistance

SPACING = (2.0, 0.5, 4.0)
# voxels to mm with the axes of the file turned, so that only lengths of columns are spacings
AFFINE = np.array([[0, 0.5, 0, 3.0], [-2.0, 0, 0, 5.0], [0, 0, 4.0, 7.0], [0, 0, 0, 1]])
METRICS = [SpacedSurfaceDistance, SpacedHausdorffDistance]


def one_hot(*structures: np.ndarray) -> torch.Tensor:
    """(C, H, W, D) with the background in front."""
    inside = np.stack(structures)
    return torch.from_numpy(np.concatenate([~inside.any(0, keepdims=True), inside])).float()


def box(x: slice, y: slice, z: slice) -> np.ndarray:
    volume = np.zeros((10, 20, 8), dtype=bool)
    volume[x, y, z] = True
    return volume


DRAWN = box(slice(2, 6), slice(3, 15), slice(2, 6)), box(slice(7, 9), slice(3, 9), slice(1, 4))
PREDICTED = box(slice(3, 8), slice(5, 15), slice(2, 5)), box(slice(7, 9), slice(4, 9), slice(2, 4))


def surface(volume: np.ndarray) -> np.ndarray:
    """Places in mm of the voxels that have a neighbour outside."""
    return np.argwhere(volume & ~binary_erosion(volume)) * SPACING


def by_hand(predicted: np.ndarray, drawn: np.ndarray) -> tuple[float, float]:
    """Mean distance both ways, and the larger of the two 95th percentiles."""
    distances = cdist(surface(predicted), surface(drawn))
    there, back = distances.min(1), distances.min(0)
    return float(np.concatenate([there, back]).mean()), max(np.percentile(there, 95), np.percentile(back, 95))


def label(*structures: np.ndarray) -> MetaTensor:
    return MetaTensor(one_hot(*structures), affine=torch.from_numpy(AFFINE))


@pytest.mark.parametrize("number, metric", enumerate(METRICS))
def test_distances_are_those_between_the_surfaces_in_mm(number: int, metric: type) -> None:
    found = metric()([one_hot(*PREDICTED)], [label(*DRAWN)])
    expected = [by_hand(p, d)[number] for p, d in zip(PREDICTED, DRAWN)]
    np.testing.assert_allclose(found.numpy(), [expected], rtol=1e-5)


@pytest.mark.parametrize("metric", METRICS)
def test_a_missed_structure_has_no_distance_and_leaves_the_mean_finite(metric: type) -> None:
    measure, nothing = metric(), np.zeros_like(DRAWN[0])
    measure([one_hot(PREDICTED[0], nothing)], [label(*DRAWN)])
    assert torch.isnan(measure.get_buffer()).tolist() == [[False, True]]
    assert float(measure.aggregate()) == pytest.approx(float(measure.get_buffer()[0, 0]))


def test_where_all_is_missed_the_mean_is_not_zero() -> None:
    measure, nothing = SpacedSurfaceDistance(), np.zeros_like(DRAWN[0])
    measure([one_hot(nothing, nothing)], [label(*DRAWN)])
    assert np.isnan(float(measure.aggregate()))


def test_every_case_has_its_own_spacing() -> None:
    measure = IgniteMetricHandler(SpacedSurfaceDistance(), save_details=False)
    wide = MetaTensor(one_hot(*DRAWN), affine=torch.from_numpy(np.diag([3, 3, 3, 1]) @ AFFINE))
    measure.update(([one_hot(*PREDICTED)] * 2, [label(*DRAWN), wide]))
    near, far = measure.metric_fn.get_buffer()
    torch.testing.assert_close(far, 3 * near)


def test_a_label_without_affine_is_refused() -> None:
    with pytest.raises(ValueError, match="need the label's affine"):
        SpacedSurfaceDistance()([one_hot(*PREDICTED)], [one_hot(*DRAWN)])
