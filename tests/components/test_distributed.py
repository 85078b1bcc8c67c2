from __future__ import annotations

import pytest
import torch.distributed as dist

from medical_diffusion_components.distributed import gathered, join_processes, share


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
