from __future__ import annotations

import math

import pytest
import torch
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR

from medical_diffusion_components.handlers.warmup_cosine import WarmupCosine


def optimizer() -> Optimizer:
    one, other = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    return SGD([{"params": one, "lr": 0.4}, {"params": other, "lr": 0.1}])


def rates(schedule: WarmupCosine | CosineAnnealingLR, steps: int) -> list[list[float]]:
    found = []
    for _ in range(steps):
        found.append([group["lr"] for group in schedule.optimizer.param_groups])
        schedule.optimizer.step()
        schedule.step()
    return found


def test_without_warm_up_it_is_the_cosine_of_torch() -> None:
    ours = rates(WarmupCosine(optimizer(), total=30, final=0.05), 30)
    for group, rate in enumerate((0.4, 0.1)):
        one = SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)
        torchs = rates(CosineAnnealingLR(one, T_max=30, eta_min=0.05 * rate), 30)
        assert [row[group] for row in ours] == pytest.approx([row[0] for row in torchs], rel=1e-9)


def test_by_default_the_rate_is_constant() -> None:
    assert rates(WarmupCosine(optimizer(), total=3), 5) == [[0.4, 0.1]] * 5


def test_the_rate_rises_along_a_line_to_the_cosine_and_stays_at_its_end() -> None:
    found = [row[0] / 0.4 for row in rates(WarmupCosine(optimizer(), total=40, warmup=4, final=0.1), 50)]
    cosine = [0.1 + 0.9 * (1 + math.cos(math.pi * s / 40)) / 2 for s in range(40)]
    assert found[:4] == pytest.approx([cosine[s] * (s + 1) / 4 for s in range(4)])
    assert found[4:40] == pytest.approx(cosine[4:]) and found[40:] == pytest.approx([0.1] * 10)


def test_a_resumed_schedule_has_the_rates_of_the_uninterrupted_one_to_the_bit() -> None:
    settings = {"total": 20, "warmup": 6, "final": 0.02}
    whole = rates(WarmupCosine(optimizer(), **settings), 20)
    for stop in (3, 11):
        first = WarmupCosine(optimizer(), **settings)
        rates(first, stop)
        second = WarmupCosine(optimizer(), **settings)
        second.optimizer.load_state_dict(first.optimizer.state_dict())
        second.load_state_dict(first.state_dict())
        assert rates(second, 20 - stop) == whole[stop:]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"total": 0}, "at least one step in total .* got 0 and 0"),
        ({"total": 5, "warmup": -1}, "no negative warm-up, got 5 and -1"),
        ({"total": 5, "final": 1.5}, r"in \[0, 1\], got 1.5"),
    ],
)
def test_impossible_schedules_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WarmupCosine(optimizer(), **settings)
