from __future__ import annotations

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from ignite.exceptions import NotComputableError
from scipy.stats import entropy

from medical_diffusion_components.metrics.codebook_usage import CodebookPerplexity


def perplexity(*batches: torch.Tensor, num_codes: int = 10) -> float:
    metric = CodebookPerplexity(num_codes)
    for batch in batches:
        metric.update(batch)
    return metric.compute()


def test_perplexity_of_codes_used_alike_is_their_number():
    assert perplexity(torch.arange(10).repeat(3).view(2, 3, 5, 1)) == pytest.approx(10)
    assert perplexity(torch.tensor([2, 7, 7, 2])) == pytest.approx(2)


def test_perplexity_of_a_single_code_is_1():
    assert perplexity(torch.full((1, 2, 3, 4), 9)) == pytest.approx(1)


def test_perplexity_is_that_of_all_volumes_of_an_epoch_together():
    batches = [torch.randint(0, 10, (2, 3, 4, 5)) ** 2 // 10 for _ in range(3)]
    share = np.bincount(torch.cat([b.flatten() for b in batches]), minlength=10)
    assert perplexity(*batches) == pytest.approx(np.exp(entropy(share)))
    # not the mean of the batches' own
    assert perplexity(torch.tensor([1]), torch.tensor([2])) == pytest.approx(2)


def test_processes_count_together(monkeypatch):
    """The other process has used code 2 as often as this one code 1."""
    metric = CodebookPerplexity(4)
    metric.update(torch.tensor([1, 1, 1]))
    monkeypatch.setattr("ignite.distributed.get_world_size", lambda: 2)
    monkeypatch.setattr("ignite.distributed.all_reduce", lambda counts: counts + counts.roll(1))
    assert metric.compute() == pytest.approx(2)


def test_every_epoch_counts_anew():
    metric = CodebookPerplexity(5)
    engine = Engine(lambda engine, batch: {"indices": batch})
    metric.attach(engine, "perplexity")
    assert engine.run([torch.tensor([0, 1])]).metrics["perplexity"] == pytest.approx(2)
    assert engine.run([torch.tensor([3, 3])]).metrics["perplexity"] == pytest.approx(1)


def test_perplexity_of_nothing_is_an_error():
    with pytest.raises(NotComputableError, match="at least one batch"):
        CodebookPerplexity(5).compute()
