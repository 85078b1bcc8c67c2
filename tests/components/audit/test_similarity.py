"""Nearest training volumes: by hand, by patient, mirrored, and duplicates among them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from medical_diffusion_components.audit import TrainingBank, merge_groups, similar_pairs


def bank(count: int = 7, views: int = 2, groups: list[int] | None = None) -> TrainingBank:
    points = normalize(torch.randn(count, views, 5), dim=2)
    return TrainingBank(points, torch.tensor(groups or list(range(count))))


def test_nearest_is_that_of_brute_force_over_views_and_patients() -> None:
    groups = [0, 0, 1, 1, 2, 3, 3]
    training, queries = bank(groups=groups), normalize(torch.randn(11, 5), dim=1)
    found = training.nearest(queries)
    for row, query in enumerate(queries):
        cosines = [max(float(query @ view) for view in views) for views in training.points]
        source = int(np.argmax(cosines))
        second = max(cosine for cosine, group in zip(cosines, groups) if group != groups[source])
        assert found.source[row] == source
        assert found.similarity[row] == pytest.approx(cosines[source], abs=1e-6)
        assert found.ratio[row] == pytest.approx(((2 - 2 * cosines[source]) / (2 - 2 * second)) ** 0.5, abs=1e-5)


def test_a_mirrored_training_volume_is_found() -> None:
    training = bank()
    found = training.nearest(training.points[:, 1])
    np.testing.assert_array_equal(found.source, np.arange(7))
    np.testing.assert_allclose(found.similarity, 1, atol=1e-6)
    assert found.ratio.max() < 1e-2


def test_a_second_scan_of_the_patient_is_not_the_second_patient() -> None:
    points = normalize(torch.randn(4, 1, 5), dim=2)
    points[1] = normalize(points[0] + 0.01 * torch.randn(1, 5), dim=1)
    query = normalize(points[0] + 0.01 * torch.randn(1, 5), dim=1)
    assert TrainingBank(points, torch.tensor([0, 0, 1, 2])).nearest(query).ratio[0] < 0.1
    assert TrainingBank(points, torch.arange(4)).nearest(query).ratio[0] > 0.2


def test_duplicates_are_pairs_of_different_patients_and_become_one() -> None:
    points = normalize(torch.randn(5, 2, 16), dim=2)
    points[3], points[1] = points[0].flip(0), points[0]  # 3 is the mirror image of 0, 1 another scan of its patient
    training = TrainingBank(points, torch.tensor([0, 0, 1, 2, 3]))
    pairs = similar_pairs(training, 0.99)
    assert [pair[:2] for pair in pairs] == [(0, 3), (1, 3)]
    assert merge_groups(training.groups, pairs).tolist()[0] == merge_groups(training.groups, pairs).tolist()[3]
    assert len(set(merge_groups(training.groups, pairs).tolist())) == 3
    assert similar_pairs(training, 1.1) == []


def test_one_patient_is_too_few() -> None:
    with pytest.raises(ValueError, match="two or more patients"):
        bank(3, groups=[1, 1, 1]).nearest(torch.randn(1, 5))


def test_duplicates_of_duplicates_are_one_patient() -> None:
    assert merge_groups(torch.arange(4), [(1, 2, 0.99), (0, 1, 0.98)]).tolist() == [0, 0, 0, 3]
