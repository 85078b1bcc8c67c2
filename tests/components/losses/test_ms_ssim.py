from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.metrics import MultiScaleSSIMMetric
from scipy.ndimage import correlate1d, gaussian_filter

from medical_diffusion_components.losses.ms_ssim import MSSSIMLoss, scale_sizes

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def pair(*size: int, noise: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    """A smooth random volume in about [-1, 1] and a noisy one, (1, 1, H, W, D)."""
    rng = np.random.default_rng(0)
    smooth = gaussian_filter(rng.normal(size=size), 1.0)
    smooth /= np.abs(smooth).max()
    return tuple(
        torch.from_numpy(v.astype(np.float32))[None, None] for v in (smooth + noise * rng.normal(size=size), smooth)
    )


def halved(volume: np.ndarray, axis: int) -> np.ndarray:
    even = np.moveaxis(volume, axis, 0)[: volume.shape[axis] // 2 * 2]
    return np.moveaxis((even[0::2] + even[1::2]) / 2, 0, axis)


def blurred(volume: np.ndarray, window: int, sigma: float) -> np.ndarray:
    for axis, length in enumerate(volume.shape):
        width = min(window, length if length % 2 else length - 1)
        kernel = np.exp(-0.5 * (np.arange(-(width // 2), width // 2 + 1) / sigma) ** 2)
        volume = correlate1d(volume, kernel / kernel.sum(), axis=axis)
        volume = np.take(volume, range(width // 2, length - width // 2), axis=axis)
    return volume


def reference(x: np.ndarray, y: np.ndarray, window: int = 11, sigma: float = 1.5, data_range: float = 2.0) -> float:
    """MS-SSIM in float64, scale by scale, by SciPy."""
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    x, y, factors = x.astype(np.float64), y.astype(np.float64), []
    while True:
        mx, my = blurred(x, window, sigma), blurred(y, window, sigma)
        vx, vy = blurred((x * x), window, sigma) - mx**2, blurred(y * y, window, sigma) - my**2
        cs = (2 * (blurred(x * y, window, sigma) - mx * my) + c2) / (vx + vy + c2)
        luminance = (2 * mx * my + c1) / (mx**2 + my**2 + c1)
        longer = [axis for axis, length in enumerate(x.shape) if length // 2 >= window]
        if not longer or len(factors) == 4:
            factors.append((luminance * cs).mean())
            break
        factors.append(cs.mean())
        for axis in longer:
            x, y = halved(x, axis), halved(y, axis)
    weights = np.array(WEIGHTS[: len(factors)])
    return float(np.prod(np.array(factors) ** (weights / weights.sum())))


@pytest.mark.parametrize(
    ("size", "window"),
    [
        ((25, 13, 11), 11),  # two scales, one axis halved
        ((47, 23, 12), 11),  # three scales; odd sides
        ((24, 12, 5), 11),  # an axis shorter than the window
        ((24, 16, 1), 11),  # a single slice
        ((9, 7, 4), 11),  # every axis shorter than the window: one scale
        ((40, 10, 21), 5),
    ],
)
def test_anisotropic_and_small_volumes_agree_with_a_float64_reference(size: tuple, window: int) -> None:
    x, y = pair(*size)
    expected = reference(x[0, 0].numpy(), y[0, 0].numpy(), window)
    assert 0.02 < expected < 0.98
    assert MSSSIMLoss(window=window)(x, y).item() == pytest.approx(1 - expected, abs=2e-5)


@pytest.mark.parametrize(("side", "window", "scales"), [(48, 11, 3), (20, 5, 3), (16, 11, 1)])
def test_isotropic_volumes_agree_with_monai(side: int, window: int, scales: int) -> None:
    x, y = pair(side, side, side)
    weights = [w / sum(WEIGHTS[:scales]) for w in WEIGHTS[:scales]]
    monai = MultiScaleSSIMMetric(spatial_dims=3, data_range=2.0, kernel_size=window, weights=weights)
    assert MSSSIMLoss(window=window)(x, y).item() == pytest.approx(1 - monai(x, y).item(), abs=2e-5)


def test_an_axis_is_halved_until_it_would_be_shorter_than_the_window() -> None:
    assert scale_sizes((64, 32, 8)) == [(64, 32, 8), (32, 16, 8), (16, 16, 8)]
    assert scale_sizes((22, 21, 11)) == [(22, 21, 11), (11, 21, 11)]
    assert scale_sizes((500, 4, 4), window=3) == [(500, 4, 4), (250, 4, 4), (125, 4, 4), (62, 4, 4), (31, 4, 4)]
    assert scale_sizes((500, 500, 500), most=1) == [(500, 500, 500)]


def test_equal_volumes_have_no_loss_and_unlike_ones_about_one() -> None:
    noise, smooth = pair(24, 12, 13, noise=10)
    assert MSSSIMLoss()(smooth, smooth).item() == pytest.approx(0, abs=1e-6)
    assert 0.9 < MSSSIMLoss()(noise, smooth).item() <= 1


def test_a_batch_of_channels_is_the_mean_over_volumes_and_channels() -> None:
    x, y = (torch.cat([v, v.flip(2) * 0.5, v.flip(3) * 2, v.flip(4)]) for v in pair(24, 13, 11))
    loss = MSSSIMLoss()
    single = [loss(a[None], b[None]).item() for a, b in zip(x, y)]
    assert loss(x, y).item() == pytest.approx(np.mean(single), abs=1e-6)
    assert loss(x.view(2, 2, 24, 13, 11), y.view(2, 2, 24, 13, 11)).item() == pytest.approx(np.mean(single), abs=1e-6)
    similarity = loss.similarity(x.view(2, 2, 24, 13, 11), y.view(2, 2, 24, 13, 11))
    assert similarity.tolist() == pytest.approx([1 - np.mean(single[:2]), 1 - np.mean(single[2:])], abs=1e-6)


def test_the_gradient_is_that_of_finite_differences() -> None:
    x, y = (v.double() for v in pair(12, 6, 5, noise=0.1))
    loss = MSSSIMLoss(window=5)
    x.requires_grad_(True)
    loss(x, y).backward()
    place = (0, 0, 5, 2, 3)
    up, down = x.detach().clone(), x.detach().clone()
    up[place] += 0.02
    down[place] -= 0.02
    slope = (loss(up, y) - loss(down, y)).item() / 0.04
    assert x.grad[place].item() == pytest.approx(slope, rel=0.02)


@pytest.mark.parametrize("other", ["opposite", "constant", "zero"])
def test_gradients_are_finite_however_unlike_the_volumes(other: str) -> None:
    _, y = pair(24, 12, 11)
    x = {"opposite": -3 * y, "constant": torch.full_like(y, 0.7), "zero": torch.zeros_like(y)}[other].requires_grad_()
    loss = MSSSIMLoss()(x, y)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(x.grad).all()


def test_under_autocast_it_is_computed_in_float32() -> None:
    x, y = pair(24, 13, 11)
    expected = MSSSIMLoss()(x.bfloat16().float(), y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = MSSSIMLoss()(x.bfloat16(), y)
    assert found.dtype == torch.float32 and found.item() == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize(
    "settings", [{"window": 10}, {"window": -1}, {"sigma": 0}, {"data_range": -1}, {"weights": ()}, {"weights": (1, 0)}]
)
def test_impossible_settings_are_refused(settings: dict) -> None:
    with pytest.raises(ValueError, match="got"):
        MSSSIMLoss(**settings)


def test_volumes_of_unlike_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"one shape, got \(1, 1, 4, 5, 6\) and \(1, 1, 4, 5, 7\)"):
        MSSSIMLoss()(torch.zeros(1, 1, 4, 5, 6), torch.zeros(1, 1, 4, 5, 7))
