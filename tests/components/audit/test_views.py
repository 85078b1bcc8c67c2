"""Random views keep to what they are said to do at most, and do it as SciPy would."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import convolve1d
from scipy.spatial.transform import Rotation

from medical_diffusion_components.audit import RandomViews, views

NONE = dict.fromkeys(("rotation", "scale", "shift", "warp", "gamma", "blur", "noise"), 0.0)
SHAPE = (200, 1, 6, 7, 8)


def only(**change: float) -> RandomViews:
    return RandomViews(None, **{**NONE, **change})


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def binomial(volume: np.ndarray, times: int) -> np.ndarray:
    for _ in range(times):
        for axis in range(3):
            volume = convolve1d(volume, [0.25, 0.5, 0.25], axis, mode="nearest")
    return volume


def test_each_volume_is_standardised_by_itself_and_a_constant_one_becomes_zero() -> None:
    volumes = torch.stack([torch.rand(1, 4, 5, 6), 100 * torch.rand(1, 4, 5, 6) + 7, torch.full((1, 4, 5, 6), 3.0)])
    found = views.standardise(volumes)
    torch.testing.assert_close(found.flatten(1).mean(1), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.flatten(1).std(1), torch.tensor([1.0, 1.0, 0.0]), atol=1e-4, rtol=0)


def test_rotations_are_those_of_their_vectors() -> None:
    angles = torch.rand(5, 3) * 2 - 1
    expected = Rotation.from_rotvec(angles.numpy()).as_matrix()
    np.testing.assert_allclose(views._rotations(angles).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("change", ["scale", "shift", "rotation"])
def test_volumes_are_moved_up_to_what_is_said_along_each_axis(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    monkeypatch.setattr(
        views, "_rotations", lambda angles: drawn.append(angles) or torch.eye(3).expand(len(angles), 3, 3)
    )
    grid = only(**{change: 0.1})._grid(torch.zeros(SHAPE), generator())  # (200, h, w, d, 3), the last in order d, w, h
    still = only()._grid(torch.zeros(1, *SHAPE[1:]), generator())
    moved = {"rotation": drawn[0], "shift": (grid - still)[:, 0, 0, 0], "scale": (grid / still - 1)[:, 0, 0, 0]}[change]
    assert moved.shape == (200, 3)
    assert ((moved.amax(0) > 0.09) & (moved.amin(0) < -0.09) & (moved.abs().amax(0) <= 0.1 + 1e-5)).all()


def test_a_warp_has_the_deviation_that_is_said_at_its_points() -> None:
    volumes = torch.zeros(200, 1, 5, 5, 5)
    bent = only(warp=0.03)._grid(volumes, generator()) - only()._grid(volumes[:1], generator())
    assert float(bent.std()) == pytest.approx(0.03, rel=0.02)


def test_what_comes_in_at_the_edge_is_the_edge() -> None:
    moved = only(shift=0.5)(torch.ones(3, *SHAPE[1:]), generator())
    assert float(moved.abs().max()) < 1e-3, "of one intensity as before"


def test_a_blur_is_a_number_of_binomial_filters() -> None:
    volume = torch.rand(1, *SHAPE[1:]) * 2 - 1
    found = only(blur=1.0)(volume.expand(SHAPE), generator())
    blurred = [views.standardise(torch.from_numpy(binomial(volume[0, 0].numpy(), n))[None, None]) for n in range(1, 9)]
    distances = torch.stack([(found - one).flatten(1).abs().amax(1) for one in blurred])  # (8, 200)
    assert (distances.amin(0) < 1e-3).all() and distances.argmin(0).bincount(minlength=8).min() > 10


def test_intensities_change_as_much_as_is_said() -> None:
    grey = torch.zeros(SHAPE)
    sigma = only(noise=0.05)._other_intensities(grey, generator()).flatten(1).std(1)
    assert 0.045 < float(sigma.max()) < 0.06 and float(sigma.mean()) == pytest.approx(0.025, rel=0.1)
    exponents = only(gamma=0.4)._other_intensities(grey, generator())[:, 0, 0, 0, 0].log() / np.log(0.5)
    assert 0.67 <= float(exponents.min()) < 0.7 and 1.45 < float(exponents.max()) <= 1.492  # exp(-0.4) to exp(0.4)
    beyond = only(gamma=0.4)._other_intensities(torch.full(SHAPE, -1.2), generator())
    assert torch.equal(beyond, torch.zeros(SHAPE)), "what lies below the range is its end"
