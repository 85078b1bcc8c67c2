from __future__ import annotations

import ast
import hashlib
import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

import medical_diffusion_components
from medical_diffusion_components.chance import (
    counter_bits,
    counter_normal,
    derive_seed,
    draw_integers,
    draw_normal,
    draw_stratified,
    draw_uniform,
    normal_of_seed,
    numpy_generator,
    reseed,
    seed_of_name,
    seeded,
    seeds_from_noise,
    torch_generator,
)

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
    assert not torch.allclose(noise[0], noise[1])
    # the whole numbers are the same to the bit; logarithm and cosine may round by their place in the tensor
    assert torch.equal(counter_bits(seeds, 24)[1:2], counter_bits(seeds[1:2], 24))
    for row, alone in ((noise[0], noise[2]), (noise[1:2], counter_normal(seeds[1:2], 4, like[:1]))):
        torch.testing.assert_close(row, alone, rtol=1e-6, atol=2e-6)
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


def test_derived_seeds_do_not_collide_where_sums_would() -> None:
    seeds = {derive_seed(*parts) for parts in product(range(16), repeat=3)}
    assert len(seeds) == 16**3
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_derived_seeds_are_the_same_on_every_machine() -> None:
    """A training that is resumed on another machine draws what it would have drawn on the first."""
    assert (derive_seed(0, 0, 0), derive_seed(1, 2, 3)) == (2968811710, 3822189696)
    assert derive_seed(True, np.int64(2)) == derive_seed(1, 2)


@pytest.mark.parametrize("stratified", [False, True])
def test_uniform_numbers_are_uniform_and_those_of_the_ranks_are_those_of_one_process(stratified: bool, as_rank) -> None:
    torch.manual_seed(5)
    whole = draw_uniform(600, stratified)
    assert whole.dtype == torch.float64 and stats.kstest(whole, "uniform").pvalue > 1e-3
    assert stratified == ((whole * 600).long().sort().values == torch.arange(600)).all()
    shares = []
    for rank in range(3):
        as_rank(rank, 3)
        torch.manual_seed(5)
        shares.append(draw_uniform(200, stratified))
    assert torch.equal(dealt(shares), whole)


def test_generators_follow_from_their_integers_alone() -> None:
    """The numbers themselves: a volume of a seed stays the volume of that seed in every version."""
    for parts, same in (((7,), 7), ((7, 2), [7, 2])):
        assert np.array_equal(numpy_generator(*parts).random(5), np.random.default_rng(same).random(5))
    assert not np.array_equal(numpy_generator(1, 2).random(3), numpy_generator(2, 1).random(3))
    torch.manual_seed(9)
    before = torch.get_rng_state()
    noise = normal_of_seed(4, (2, 3))
    torch.testing.assert_close(noise, torch.randn(2, 3, generator=torch.Generator().manual_seed(4)), rtol=0, atol=0)
    assert torch.equal(torch.rand(4, generator=torch_generator(4)), torch.rand(4, generator=torch_generator(4)))
    assert torch.equal(torch.get_rng_state(), before), "torch's own generator has no say and is left alone"


def test_a_negative_part_of_a_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        numpy_generator(1, -1)


def test_the_seed_of_a_name_is_the_start_of_its_hash() -> None:
    digest = hashlib.sha256(b"case/3").hexdigest()
    assert (seed_of_name("case/3"), seed_of_name("case/3", 6)) == (int(digest[:8], 16), int(digest[:12], 16))


def test_reseeding_sets_the_state_that_the_integers_give() -> None:
    drawn = []
    for parts in ((1, 2), (1, 2), (2, 1)):
        torch.rand(5)
        reseed(*parts)
        drawn.append(torch.rand(3).tolist())
    assert drawn[0] == drawn[1] != drawn[2]
    torch.manual_seed(derive_seed(1, 2))
    assert torch.rand(3).tolist() == drawn[0]


def test_a_seeded_block_leaves_the_generator_where_it_was() -> None:
    torch.manual_seed(8)
    expected = torch.rand(2)
    torch.manual_seed(8)
    with pytest.raises(KeyError), seeded(3):
        inside = torch.rand(2)
        raise KeyError
    assert torch.equal(torch.rand(2), expected)
    assert torch.equal(inside, torch.rand(2, generator=torch_generator(3)))


SOURCES = {
    "default_rng",
    "Generator",
    "RandomState",
    "SeedSequence",
    "fork_rng",
    "manual_seed",
    "manual_seed_all",
    "seed",
}


def sources_in(code: str) -> list[str]:
    """Calls that make or set a source of randomness, and imports of Python's own."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            found += [f"line {node.lineno}: {name}()"] * (name in SOURCES)
        elif isinstance(node, ast.Import):
            found += [f"line {node.lineno}: import random" for name in node.names if name.name in ("random", "secrets")]
        elif isinstance(node, ast.ImportFrom) and node.module in ("random", "secrets", "numpy.random"):
            found.append(f"line {node.lineno}: from {node.module}")
    return found


def test_no_other_module_has_a_source_of_randomness_of_its_own() -> None:
    assert sources_in("import random\nnp.random.default_rng(0)\ntorch.Generator().manual_seed(1)") != []
    package = Path(medical_diffusion_components.__file__).parent
    files = [path for path in sorted(package.rglob("*.py")) if path.name != "chance.py"]
    found = {str(path.relative_to(package)): sources_in(path.read_text()) for path in files}
    assert len(files) > 100 and {name: calls for name, calls in found.items() if calls} == {}
