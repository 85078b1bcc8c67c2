from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from medical_diffusion_components.chance import counter_normal, seeds_from_noise

MASK = 0xFFFFFFFF


def mix(x: int) -> int:
    """MurmurHash3's finaliser on Python's integers."""
    x = (x ^ x >> 16) * 0x85EBCA6B & MASK
    x = (x ^ x >> 13) * 0xC2B2AE35 & MASK
    return x ^ x >> 16


def draw(seed: int = 7, step: int = 0, count: int = 40_000) -> np.ndarray:
    return counter_normal(torch.tensor([seed]), step, torch.empty(1, 2, count // 2)).flatten().double().numpy()


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """In standard errors."""
    return float(np.corrcoef(a, b)[0, 1] * math.sqrt(len(a)))


@pytest.mark.parametrize("seed, step", [(0, 0), (1, 299), (MASK, 17)])
def test_numbers_equal_those_of_whole_number_arithmetic(seed, step):
    stream = mix(seed ^ mix(step + 1))
    for place, number in enumerate(draw(seed, step, 6)):
        u, v = ((mix(mix(2 * place + k) ^ stream) + 0.5) / 2**32 for k in (1, 2))
        assert number == pytest.approx(math.sqrt(-2 * math.log(u)) * math.cos(2 * math.pi * v), abs=1e-5)


@pytest.mark.parametrize("seed, step", [(0, 0), (1, 0), (0, 1), (MASK, 299)])
def test_numbers_are_standard_normal(seed, step):
    numbers = draw(seed, step)
    n = len(numbers)
    assert abs(numbers.mean()) < 4 / math.sqrt(n)
    assert abs(numbers.var() - 1) < 4 * math.sqrt(2 / n)
    assert abs(stats.skew(numbers)) < 4 * math.sqrt(6 / n)
    assert abs(stats.kurtosis(numbers)) < 4 * math.sqrt(24 / n)
    assert stats.kstest(numbers, stats.norm.cdf).pvalue > 1e-3


def test_p_values_of_many_draws_are_uniform():
    values = [stats.kstest(draw(seed, step, 1000), stats.norm.cdf).pvalue for seed in range(10) for step in range(20)]
    assert stats.kstest(values, stats.uniform.cdf).pvalue > 1e-3


def test_every_place_is_standard_normal_over_steps_and_over_seeds():
    like = torch.empty(1, 5)
    over_steps = torch.cat([counter_normal(torch.tensor([3]), step, like) for step in range(3000)])
    over_seeds = counter_normal(torch.arange(3000), 3, torch.empty(3000, 5))
    for numbers in (*over_steps.T, *over_seeds.T):
        assert stats.kstest(numbers.double().numpy(), stats.norm.cdf).pvalue > 1e-4


@pytest.mark.parametrize("lag", [1, 2, 3, 8, 64, 100, 1024])
def test_neighbours_are_uncorrelated(lag):
    numbers = draw()
    assert abs(correlation(numbers[lag:], numbers[:-lag])) < 4
    assert abs(correlation(numbers[lag:] ** 2, numbers[:-lag] ** 2)) < 4


@pytest.mark.parametrize("other", [(7, 1), (7, 2), (7, 256), (8, 0), (6, 0), (7 + 2**31, 0), (mix(7), 0)])
def test_steps_and_seeds_are_uncorrelated(other):
    a, b = draw(7, 0), draw(*other)
    assert abs(correlation(a, b)) < 4 and abs(correlation(a**2, b**2)) < 4
    assert abs(correlation(a[1:], b[:-1])) < 4 and abs(correlation(a[:-1], b[1:])) < 4


def test_noise_of_a_row_depends_on_its_seed_and_the_step_alone():
    seeds, like = torch.tensor([5, 9, 5]), torch.empty(3, 2, 4, 3)
    noise = counter_normal(seeds, 4, like)
    assert torch.equal(noise[0], noise[2]) and not torch.equal(noise[0], noise[1])
    assert torch.equal(noise[1:2], counter_normal(seeds[1:2], 4, like[:1]))
    torch.manual_seed(1)  # the global random state has no say, and is left alone
    before = torch.get_rng_state()
    assert torch.equal(noise, counter_normal(seeds, 4, torch.ones_like(like)))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_noise_has_the_dtype_of_its_model_and_the_numbers_of_float32(dtype):
    like = torch.empty(1, 3, 5)
    expected = counter_normal(torch.tensor([1]), 2, like).to(dtype)
    assert torch.equal(counter_normal(torch.tensor([1]), 2, like.to(dtype)), expected)


def test_largest_numbers_are_finite():
    assert np.isfinite(draw(count=200_000)).all()


def test_scripted_noise_equals_the_eager_one():
    scripted = torch.jit.script(counter_normal)
    arguments = torch.tensor([3, MASK]), 11, torch.empty(2, 3, 5)
    assert torch.equal(scripted(*arguments), counter_normal(*arguments))


# --- seeds ---


def latents(batch: int = 4) -> Tensor:
    return torch.randn(batch, 2, 3, 5, 4)


def test_seeds_equal_those_of_whole_number_arithmetic():
    noise = latents(2)
    for seed, row in zip(seeds_from_noise(noise).tolist(), noise.flatten(1).tolist()):
        numbers = [int(number * 2**20) & MASK for number in row]  # Python rounds towards zero, too
        assert seed == mix(mix_sum(numbers) & MASK)


def mix_sum(numbers: list[int]) -> int:
    return sum(mix(number ^ mix(place)) for place, number in enumerate(numbers))


def test_seed_of_a_volume_does_not_depend_on_its_batch():
    noise = latents()
    together = seeds_from_noise(noise)
    assert together.tolist() == [seeds_from_noise(row[None]).item() for row in noise]
    assert seeds_from_noise(noise.flip(0)).tolist() == together.flip(0).tolist()
    assert len(set(together.tolist())) == 4 and together.min() >= 0 and together.max() <= MASK


def test_tiny_changes_of_a_single_number_change_the_seed():
    noise = latents(1)
    seeds = {seeds_from_noise(noise).item()}
    for place in range(noise.numel()):
        other = noise.clone()
        other.view(-1)[place] += 2e-6
        seeds.add(seeds_from_noise(other).item())
    assert len(seeds) == noise.numel() + 1


def test_exchanging_two_numbers_or_a_sign_changes_the_seed():
    noise = latents(1)
    swapped = noise.clone()
    swapped[0, 0, 0, 0, :2] = noise[0, 0, 0, 0, :2].flip(0)
    assert len({seeds_from_noise(x).item() for x in (noise, swapped, -noise, noise.transpose(1, 2), noise * 2)}) == 5
