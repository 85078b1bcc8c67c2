from __future__ import annotations

import pickle
import threading
import time
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from monai.data import DataLoader
from monai.engines import Trainer
from monai.transforms import Compose, Lambdad, MapTransform, RandFlipd, RandGaussianNoised, Randomizable

from medical_diffusion_components.data.loading import ResumableSampler, SeededDataset

CASES = [{"image": np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4) * (n + 1), "number": n} for n in range(10)]


def order(sampler: ResumableSampler, epoch: int) -> list[int]:
    sampler.set_epoch(epoch)
    return [int(index) for index in sampler]


def dataset(**options: Any) -> SeededDataset:
    return SeededDataset(
        CASES, Compose([RandFlipd("image", prob=0.5), RandGaussianNoised("image", prob=1.0)]), **options
    )


def augmented(data: SeededDataset, epochs: int = 2, **options: Any) -> dict[tuple[int, int], np.ndarray]:
    """(epoch, case) -> its volume, read through a loader."""
    sampler, found = ResumableSampler(data, seed=3), {}
    loader = DataLoader(data, sampler=sampler, **options)
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        for batch in loader:
            found |= {(epoch, int(n)): image.numpy() for n, image in zip(batch["number"], batch["image"])}
    return found


def assert_equal(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for key in one:
        np.testing.assert_array_equal(one[key], other[key])


def distinct(volumes: dict) -> set[bytes]:
    return {volume.tobytes() for volume in volumes.values()}


def test_every_epoch_has_every_case_in_an_order_of_its_own() -> None:
    sampler = ResumableSampler(CASES, seed=0)
    orders = [order(sampler, epoch) for epoch in range(20)]
    assert all(sorted(each) == list(range(10)) for each in orders)
    assert len({tuple(each) for each in orders}) == 20


def test_the_order_follows_from_seed_and_epoch_alone() -> None:
    one, other = ResumableSampler(CASES, seed=5), ResumableSampler(CASES, seed=5)
    order(one, 0), torch.rand(7)
    assert order(one, 3) == order(other, 3)
    assert order(one, 3) != order(ResumableSampler(CASES, seed=6), 3)


def test_without_shuffling_the_cases_come_as_they_are() -> None:
    assert order(ResumableSampler(CASES, shuffle=False), 4) == list(range(10))


def test_skipping_leaves_out_the_first_of_one_epoch_only() -> None:
    sampler, whole = ResumableSampler(CASES, seed=0), ResumableSampler(CASES, seed=0)
    sampler.skip_once(4)
    assert order(sampler, 1) == order(whole, 1)[4:]
    assert order(sampler, 2) == order(whole, 2)


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_the_cases_without_a_gap_and_skip_alike(ranks: int, monkeypatch) -> None:
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: ranks)
    shares, rests = [], []
    for rank in range(ranks):
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        sampler = ResumableSampler(CASES, seed=0)
        shares.append(order(sampler, 1))
        sampler.skip_once(2)
        rests.append(order(sampler, 1))
    drawn = sum(shares, [])
    assert set(drawn) == set(range(10)) and len({len(share) for share in shares}) == 1
    assert len(drawn) == -(-10 // ranks) * ranks, "only as many repeated as it takes to make the shares alike"
    assert rests == [share[2:] for share in shares]


@pytest.mark.parametrize("ranks", [2, 4, 12])
def test_ranks_that_validate_see_every_case_once_and_none_is_idle(ranks: int, monkeypatch) -> None:
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: ranks)
    shares = []
    for rank in range(ranks):
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        sampler = ResumableSampler(CASES, shuffle=False)
        shares.append(order(sampler, 1))
        assert len(sampler) == len(shares[-1])
    assert sorted(sum(shares[:10], [])) == list(range(10))
    assert shares[10:] == [[0]] * (ranks - 10)


def test_monai_engines_tell_the_sampler_the_epoch() -> None:
    data = dataset(cache_rate=0.0)
    loader = DataLoader(data, sampler=ResumableSampler(data, seed=3), batch_size=5)
    drawn: list[int] = []
    Trainer(
        "cpu", 2, loader, decollate=False, iteration_update=lambda _, batch: drawn.extend(batch["number"].tolist())
    ).run()
    sampler = ResumableSampler(data, seed=3)
    assert drawn == order(sampler, 1) + order(sampler, 2)


def test_the_epoch_travels_with_the_index_to_a_worker() -> None:
    sampler = ResumableSampler(CASES)
    sampler.set_epoch(7)
    index = pickle.loads(pickle.dumps(next(iter(sampler))))
    assert index.epoch == 7 and CASES[index]["number"] == int(index)


def test_augmentation_is_the_same_in_every_run_and_another_in_every_epoch() -> None:
    first = augmented(dataset())
    torch.rand(5)
    assert_equal(first, augmented(dataset()))
    assert len(distinct(first)) == 20
    assert (
        len(
            {volume.tobytes() for volume in augmented(dataset(seed=1)).values()} & {v.tobytes() for v in first.values()}
        )
        == 0
    )


@pytest.mark.parametrize("options", [{"batch_size": 3}, {"num_workers": 2, "batch_size": 4}])
def test_augmentation_does_not_depend_on_batches_and_workers(options: dict) -> None:
    assert_equal(augmented(dataset(), **options), augmented(dataset()))


@pytest.mark.parametrize("cache_rate", [0.0, 0.5])
def test_augmentation_does_not_depend_on_what_is_cached(cache_rate: float) -> None:
    assert_equal(augmented(dataset(cache_rate=cache_rate)), augmented(dataset(cache_rate=1.0)))


def test_augmentation_does_not_depend_on_where_the_epoch_began() -> None:
    data = dataset()
    sampler = ResumableSampler(data, seed=3)
    sampler.skip_once(6)
    sampler.set_epoch(1)
    rest = {(1, int(item["number"])): item["image"].numpy() for item in (data[index] for index in sampler)}
    whole = augmented(dataset())
    assert_equal(rest, {key: whole[key] for key in rest})
    assert len(rest) == 4


def test_what_stands_before_the_first_random_transform_is_computed_once() -> None:
    calls = []
    transform = Compose([Lambdad("image", lambda image: calls.append(1) or image), RandFlipd("image", prob=0.5)])
    augmented(SeededDataset(CASES, transform), epochs=3)
    assert len(calls) == 10


class Draw(Randomizable, MapTransform):
    def __call__(self, data: dict) -> dict:
        return data | {"draw": self.R.random_sample()}


def test_an_index_without_an_epoch_counts_as_epoch_zero() -> None:
    data = SeededDataset(CASES, Compose([Draw("image")]), seed=4)
    drawn = [data[n]["draw"] for n in range(10)]
    sampler = ResumableSampler(data, shuffle=False)
    assert [data[index]["draw"] for index in sampler] == drawn and len(set(drawn)) == 10


def test_every_epoch_can_be_the_same_for_a_validation() -> None:
    volumes = augmented(dataset(seed=1, same_every_epoch=True))
    assert len(distinct(volumes)) == len(CASES)
    for number in range(len(CASES)):
        np.testing.assert_array_equal(volumes[0, number], volumes[1, number])


def test_weighted_cases_come_in_proportion_to_their_weight() -> None:
    weights = [0.0, 1.0, 4.0] + [0.5] * 7
    sampler = ResumableSampler(CASES, seed=1, weights=weights)
    drawn = np.bincount(np.concatenate([order(sampler, epoch) for epoch in range(2000)]), minlength=10)
    expected = 20_000 * np.array(weights) / sum(weights)
    assert drawn[0] == 0 and drawn.sum() == 20_000
    assert (np.abs(drawn - expected) <= 4.5 * np.sqrt(expected)).all()
    assert order(sampler, 0) == order(sampler, 0) != order(sampler, 1)


def test_weighted_draws_resume_within_an_epoch_and_ranks_share_them(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = list(range(1, 11))
    whole = order(ResumableSampler(CASES, seed=1, weights=weights), 2)
    sampler = ResumableSampler(CASES, seed=1, weights=weights)
    sampler.skip_once(4)
    assert order(sampler, 2) == whole[4:]
    shares = []
    for rank in range(2):
        monkeypatch.setattr(dist, "is_initialized", lambda: True)
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        monkeypatch.setattr(dist, "get_world_size", lambda: 2)
        shares.append(order(ResumableSampler(CASES, seed=1, weights=weights), 2))
    assert [index for pair in zip(*shares) for index in pair] == whole


@pytest.mark.parametrize("weights", [[1.0] * 9, [-1.0] + [1.0] * 9, [0.0] * 10])
def test_weights_that_are_none_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="one weight for each of 10 cases, none negative and not all 0"):
        ResumableSampler(CASES, weights=weights)


@pytest.mark.parametrize("num_workers", [1, 3])
def test_a_case_that_cannot_be_read_leaves_no_thread_at_work(num_workers: int) -> None:
    """A thread that still computes when the interpreter ends takes the whole process down: status 134 instead of 1."""
    at_work = set()

    def read(number: int) -> int:
        at_work.add(number)
        if number == 0:
            raise ValueError("no volume")
        time.sleep(0.2)
        at_work.discard(number)
        return number

    before = set(threading.enumerate())
    with pytest.raises(RuntimeError, match="applying transform"):
        SeededDataset(CASES, Compose([Lambdad("number", read)]), num_workers=num_workers)
    assert at_work == {0} and set(threading.enumerate()) <= before
