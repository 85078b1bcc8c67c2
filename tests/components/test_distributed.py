from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from scipy import stats

from medical_diffusion_components.chance import draw_integers, draw_normal, draw_stratified
from medical_diffusion_components.distributed import gathered, join_processes, share


@pytest.fixture
def as_rank(monkeypatch: pytest.MonkeyPatch):
    """Pretend to be one of several processes."""

    def pretend(rank: int, ranks: int) -> None:
        monkeypatch.setattr(dist, "is_initialized", lambda: True)
        monkeypatch.setattr(dist, "get_rank", lambda: rank)
        monkeypatch.setattr(dist, "get_world_size", lambda: ranks)

    return pretend


def dealt(shares: list[torch.Tensor]) -> torch.Tensor:
    """The global batch: the first row of every rank, then the second, and so on."""
    return torch.stack(shares, 1).flatten(0, 1)


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_draw_the_rows_that_one_process_draws_for_the_whole_batch(ranks: int, as_rank) -> None:
    torch.manual_seed(3)
    integers, noise, spread = draw_integers(300, 12), draw_normal(torch.empty(12, 2, 3, 4, 5)), draw_stratified(300, 12)
    shares = []
    for rank in range(ranks):
        as_rank(rank, ranks)
        torch.manual_seed(3)
        own = 12 // ranks
        shares.append((draw_integers(300, own), draw_normal(torch.empty(own, 2, 3, 4, 5)), draw_stratified(300, own)))
    for drawn, whole in zip(zip(*shares), (integers, noise, spread)):
        assert torch.equal(dealt(list(drawn)), whole)
    assert sorted((spread // 25).tolist()) == list(range(12)), "one in each twelfth of the range"


def test_rows_of_noise_are_standard_normal_and_differ() -> None:
    torch.manual_seed(0)
    noise = draw_normal(torch.empty(8, 4, 10, 12, 6))
    assert len({float(row[0, 0, 0, 0]) for row in noise}) == 8
    assert stats.kstest(noise.flatten(), stats.norm.cdf).pvalue > 1e-3


def test_integers_stay_below_their_bound_and_all_come_up() -> None:
    torch.manual_seed(0)
    assert draw_integers(7, 400).unique().tolist() == list(range(7))


def test_shares_are_disjoint_and_complete_and_may_be_empty(as_rank) -> None:
    shares = []
    for rank in range(4):
        as_rank(rank, 4)
        shares.append(share("abcdefgh"[:3]))
    assert shares == [["a"], ["b"], ["c"], []]


def test_a_process_that_was_started_alone_stays_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    join_processes()
    assert not dist.is_initialized() and share("ab") == ["a", "b"] and gathered(5) == [5]
