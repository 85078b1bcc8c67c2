"""Volumes that are turned or mirrored against others are found by correlation, and it is said how they lie."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medical_diffusion_components.metrics.turned import turned_against


def heads(count: int, first: int = 0, noise: float = 0.3) -> torch.Tensor:
    """A block that is nearer to another end of each axis, in noise that differs, (N, 1, 9, 9, 9)."""
    volumes = torch.zeros(count, 1, 9, 9, 9)
    volumes[:, :, 1:4, 2:8, 3:8] = 1
    drawn = np.random.default_rng(first).normal(size=(count, 1, 9, 9, 9))
    return volumes + noise * torch.from_numpy(drawn).float()


@pytest.mark.parametrize(
    ("turn", "way"),
    [
        (lambda some: some.permute(0, 1, 3, 4, 2), "with the axes WDH"),
        (lambda some: some.permute(0, 1, 4, 2, 3), "with the axes DHW"),
        (lambda some: -some.flip(4), "mirrored along D, with inverted intensities"),
        (lambda some: some.transpose(2, 3).flip(2), "with the axes WHD, mirrored along H"),
    ],
)
def test_a_way_is_named_as_the_volumes_lie_with_the_correlations_that_say_so(turn, way: str) -> None:
    training, drawn = heads(20), heads(7, first=20)
    drawn[:3] = turn(drawn[:3].clone())
    found = turned_against(training, drawn + 5)  # which volume is how bright overall does not matter
    assert found is not None and (found.number, found.way) == (3, way)
    mean = training.mean(0)
    undone, now = (
        np.median([np.corrcoef(volume.flatten(), some.flatten())[0, 1] for volume in drawn[:3]])
        for some in (turn(mean[None])[0], mean)
    )
    assert (found.undone, found.as_they_are) == (pytest.approx(undone, abs=1e-6), pytest.approx(now, abs=1e-6))
    assert str(found).endswith(f"(correlation with their mean {undone:.2f}, {now:.2f} as they are)")


def test_what_some_training_volumes_do_is_nothing_odd() -> None:
    training, drawn = heads(20), heads(6, first=20)
    assert turned_against(training, drawn.flip(3)) is not None
    training[-2:] = training[-2:].flip(3)
    assert turned_against(training, drawn.flip(3)) is None


def test_volumes_that_are_nearly_the_same_on_both_sides_are_not_turned_by_their_noise() -> None:
    even = torch.zeros(9, 9, 9)
    even[2:7, 3:6, 1:8] = 1
    training, drawn = (even + heads(count, first=count) - heads(count, noise=0) for count in (10, 300))
    assert turned_against(training, drawn) is None
