from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from scipy.integrate import quad
from torch import nn

from medical_diffusion_components.handlers.post_hoc_ema import (
    AverageSnapshots,
    _overlap,
    _Profile,
    post_hoc_average,
    snapshot_shares,
)

STEPS, EVERY = 400, 25


class Walker(nn.Module):
    """Weights that wander towards a place, and a counter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(20))
        self.register_buffer("count", torch.tensor(0))


def walk(step: int) -> torch.Tensor:
    noise = torch.randn(20, generator=torch.Generator().manual_seed(step))
    return torch.linspace(-1, 1, 20) * (1 - 0.99**step) + 0.1 * noise


def train(
    folder: Path, start: int = 0, stop: int = STEPS, state: dict | None = None, rank: int = 0
) -> AverageSnapshots:
    network = Walker()
    snapshots = AverageSnapshots(network, folder, EVERY)
    if state is not None:
        snapshots.load_state_dict(state)

    def update(engine: Engine, _: None) -> None:
        with torch.no_grad():
            network.weight.copy_(walk(engine.state.iteration))
            network.count.fill_(engine.state.iteration)

    engine = Engine(update)
    engine.state.rank = rank
    snapshots.attach(engine)
    engine.state.iteration, engine.state.epoch, engine.state.epoch_length = start, 0, STEPS
    engine.state.max_epochs = 1
    for _ in range(start, stop):
        engine.state.iteration += 1
        update(engine, None)
        snapshots(engine)
    return snapshots


def directly(gamma: float, steps: int = STEPS) -> torch.Tensor:
    average = torch.zeros(20, dtype=torch.float64)
    for step in range(1, steps + 1):
        share = 1 - (1 - 1 / step) ** (gamma + 1)
        average += share * (walk(step).double() - average)
    return average


def test_snapshots_are_the_two_averages_at_their_steps(tmp_path: Path) -> None:
    train(tmp_path)
    files = sorted(tmp_path.glob("*.pt"))
    assert [file.stem for file in files] == [f"average_{step:09d}" for step in range(EVERY, STEPS + 1, EVERY)]
    content = torch.load(files[5], weights_only=True)
    assert content["step"] == 150 and int(content["averages"][0]["count"]) == 150
    for gamma, average in zip(content["gammas"], content["averages"]):
        torch.testing.assert_close(average["weight"].double(), directly(gamma, 150), atol=1e-5, rtol=0)


@pytest.mark.parametrize("step", [300, STEPS])
@pytest.mark.parametrize("gamma", [5.0, 6.94, 10.0, 16.97, 20.0])
def test_the_average_of_another_exponent_comes_out_as_if_it_had_been_kept(
    tmp_path: Path, gamma: float, step: int
) -> None:
    train(tmp_path)
    found, wanted = post_hoc_average(tmp_path, gamma, step)["weight"].double(), directly(gamma, step)
    spread = (walk(step).double() - wanted).square().mean().sqrt()  # what a single step is off
    assert (found - wanted).square().mean().sqrt() < 0.02 * spread
    nearest = min(float((directly(kept, step) - wanted).norm()) for kept in (6.94, 16.97))
    if gamma in (5.0, 10.0, 20.0):
        assert (found - wanted).norm() < nearest / 2, "no better than the nearest that was kept"


def test_what_is_no_number_with_a_point_is_that_of_the_last_snapshot(tmp_path: Path) -> None:
    train(tmp_path)
    average = post_hoc_average(tmp_path, 10.0)
    assert int(average["count"]) == STEPS and average["weight"].dtype == torch.float32


def test_other_ranks_keep_averages_and_write_nothing(tmp_path: Path) -> None:
    other, first = train(tmp_path / "1", stop=EVERY, rank=1), train(tmp_path / "0", stop=EVERY)
    assert not (tmp_path / "1").exists() and len(list((tmp_path / "0").glob("*.pt"))) == 1
    assert all(torch.equal(a["weight"], b["weight"]) for a, b in zip(other.averages, first.averages))


def test_resumed_averages_equal_uninterrupted_ones(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole")
    first = train(tmp_path / "resumed", stop=170)
    train(tmp_path / "resumed", start=170, state=first.state_dict())
    for file in (tmp_path / "whole").glob("*.pt"):
        assert file.read_bytes() == (tmp_path / "resumed" / file.name).read_bytes()
    assert whole.gammas == [16.97, 6.94]


@pytest.mark.parametrize(
    ("one", "other"), [((30.0, 4.0), (20.0, 9.0)), ((7.0, 0.5), (7.0, 2.0)), ((5.0, 17.0), (50.0, 7.0))]
)
def test_overlap_of_profiles_is_the_integral_of_their_product(one: tuple, other: tuple) -> None:
    def profile(step: float, gamma: float, place: float) -> float:
        return (gamma + 1) * place**gamma / step ** (gamma + 1)

    expected, _ = quad(lambda place: profile(*one, place) * profile(*other, place), 0, min(one[0], other[0]))
    assert _overlap(_Profile(*one), _Profile(*other)) == pytest.approx(expected, rel=1e-8)


def test_a_snapshot_that_is_wanted_itself_has_the_share_one() -> None:
    steps, gammas = [100, 100, 200, 200], [16.97, 6.94] * 2
    np.testing.assert_allclose(snapshot_shares(steps, gammas, 200, 6.94), [0, 0, 0, 1], atol=1e-6)
    assert snapshot_shares(steps, gammas, 200, 10.0).sum() == pytest.approx(1, rel=1e-9)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gammas": [7.0]}, "at least two different exponents"),
        ({"gammas": [7.0, 7.0]}, "at least two different exponents"),
        ({"gammas": [7.0, -1.0]}, "above -1"),
        ({"every": 0}, "at least 1 step between two snapshots, got 0"),
    ],
)
def test_snapshots_that_nothing_could_be_chosen_from_are_refused(tmp_path: Path, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AverageSnapshots(Walker(), tmp_path, **{"every": 5, **settings})


def test_what_cannot_be_chosen_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="up to step 0"):
        post_hoc_average(tmp_path, 7.0)
    with pytest.raises(ValueError, match="snapshots up to step 10"):
        snapshot_shares([20], [7.0], 10, 7.0)
    with pytest.raises(ValueError, match="above -0.5"):
        snapshot_shares([10], [7.0], 10, -0.6)
    with pytest.raises(ValueError, match=r"exponents \[3.0, 4.0\], but \[16.97, 6.94\]"):
        AverageSnapshots(Walker(), tmp_path, 5).load_state_dict({"gammas": [3.0, 4.0], "averages": []})
