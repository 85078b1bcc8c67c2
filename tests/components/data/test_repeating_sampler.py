from __future__ import annotations

from collections import Counter

import pytest

from medical_diffusion_components.data.loading import RepeatingSampler


def stream(cases: int, epochs: int = 3, num_samples: int | None = 4, seed: int = 1) -> list[tuple[int, int]]:
    """(case, pass) of every sample."""
    sampler, drawn = RepeatingSampler(range(cases), num_samples, seed=seed), []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        assert len(sampler) == len(list(sampler)) == (num_samples or cases)
        drawn += [(int(index), index.epoch) for index in sampler]
    return drawn


@pytest.mark.parametrize("cases", [1, 3, 5, 50])
def test_steps_do_not_depend_on_the_number_of_cases(cases: int) -> None:
    assert len(stream(cases)) == 12


def test_every_pass_draws_every_case_once_in_an_order_of_its_own() -> None:
    drawn = stream(5, epochs=5, num_samples=4)
    passes = [[case for case, number in drawn if number == n] for n in range(4)]
    assert all(sorted(order) == list(range(5)) for order in passes)
    assert len({tuple(order) for order in passes}) > 1


def test_epochs_only_cut_the_stream() -> None:
    assert stream(5, epochs=6, num_samples=2) == stream(5, epochs=2, num_samples=6)


def test_a_case_never_comes_twice_with_the_same_pass_and_so_never_with_the_same_augmentation() -> None:
    assert max(Counter(stream(2, epochs=4, num_samples=9)).values()) == 1


def test_without_a_number_an_epoch_is_a_pass() -> None:
    drawn = stream(5, epochs=2, num_samples=None)
    assert [number for _, number in drawn] == [0] * 5 + [1] * 5


def test_going_on_in_the_middle_of_an_epoch_draws_what_was_left() -> None:
    sampler = RepeatingSampler(range(5), 7, seed=3)
    sampler.set_epoch(2)
    whole = list(sampler)
    sampler.skip_once(3)
    assert list(sampler) == whole[3:] and list(sampler) == whole


def test_ranks_share_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    alone, ranks = stream(5, epochs=2, num_samples=6), []
    for rank in range(2):
        sampler = RepeatingSampler(range(5), 3, seed=1)
        sampler.num_replicas, sampler.rank = 2, rank
        ranks.append([])
        for epoch in range(2):
            sampler.set_epoch(epoch)
            ranks[rank] += [(int(index), index.epoch) for index in sampler]
    assert [sample for pair in zip(*ranks) for sample in pair] == alone


def test_the_seed_decides() -> None:
    assert stream(9, seed=1) != stream(9, seed=2)


def test_nothing_to_draw_from_is_an_error() -> None:
    with pytest.raises(ValueError, match="got 0 cases"):
        RepeatingSampler([], 3)
    with pytest.raises(ValueError, match="0 samples"):
        RepeatingSampler(range(3), 0)
