from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from torch import Tensor

from medical_diffusion_components.losses.ms_ssim import MSSSIMLoss
from medical_diffusion_components.metrics.diversity import mean_similarity, pair_similarities

VOLUMES = torch.rand(5, 1, 14, 26, 9, generator=torch.Generator().manual_seed(0)) * 2 - 1


def product(one: Tensor, other: Tensor) -> Tensor:
    return (one * other).mean(dim=(1, 2, 3, 4))


def test_all_pairs_are_compared_by_ms_ssim():
    found, compare = pair_similarities(VOLUMES), MSSSIMLoss()
    for i, j in combinations(range(5), 2):
        assert found[i, j] == found[j, i] == pytest.approx(1 - float(compare(VOLUMES[[i]], VOLUMES[[j]])), abs=1e-6)
    assert np.isnan(found.diagonal()).all()


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_mean_is_that_of_the_pairs(count):
    pairs = [float(product(VOLUMES[[i]], VOLUMES[[j]])) for i, j in combinations(range(count), 2)]
    found = pair_similarities(VOLUMES[:count], similarity=product)
    assert mean_similarity(found) == pytest.approx(np.mean(pairs))


def test_mean_of_some_volumes_leaves_out_every_pair_of_the_others():
    found = pair_similarities(VOLUMES, similarity=product)
    pairs = [float(product(VOLUMES[[i]], VOLUMES[[j]])) for i, j in ((0, 2), (0, 4), (2, 4))]
    assert mean_similarity(found, np.array([0, 2, 4])) == pytest.approx(np.mean(pairs))


def test_with_neighbours_every_volume_is_in_as_many_pairs():
    volumes = VOLUMES[[0, 1, 2, 3, 4, 0, 1]]
    for neighbours, pairs in ((1, 2), (2, 4), (3, 6), (50, 6)):
        found = pair_similarities(volumes, neighbours, product)
        assert (np.isfinite(found).sum(1) == pairs).all()
    assert np.isfinite(pair_similarities(volumes, 1, product)[0, [1, 6]]).all()


def test_copies_have_no_diversity_and_noise_has_much():
    assert mean_similarity(pair_similarities(VOLUMES[[0, 0, 0]])) == pytest.approx(1, abs=1e-5)
    assert mean_similarity(pair_similarities(VOLUMES)) < 0.2


def test_one_volume_or_no_neighbours_are_refused():
    with pytest.raises(ValueError, match="two or more volumes"):
        pair_similarities(VOLUMES[:1])
    with pytest.raises(ValueError, match="at least one neighbour"):
        pair_similarities(VOLUMES, 0)


def test_volumes_are_read_when_they_are_needed_and_about_once() -> None:
    read: list[int] = []

    class Files(list):
        def __getitem__(self, number: int) -> torch.Tensor:
            read.append(number)
            return super().__getitem__(number)

    many = torch.rand(9, 1, 16, 16, 16)
    found = pair_similarities(Files(many), 2, product)
    np.testing.assert_array_equal(found, pair_similarities(many, 2, product))
    kept, fetched = [], 0  # as a cache of three sees it
    for number in read[1:]:
        if number not in kept:
            fetched += 1
            kept = [*kept, number][-3:]
    assert fetched <= 9 + 2, "the first two once more, as neighbours of the last"
    with pytest.raises(ValueError, match=r"got shape \(0,\)"):
        pair_similarities([], 2)
