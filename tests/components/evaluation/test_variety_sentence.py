"""The sentence on variety claims a difference no more often than its errors allow, and never misses a collapse."""

from __future__ import annotations

import numpy as np
import pytest

from medical_diffusion_components.evaluation import Comparison, VolumeSet, headline

COUNT, NEIGHBOURS, REDRAWS = 40, 4, 120


def drawn(rng: np.random.Generator, count: int, spread: float = 1.0) -> VolumeSet:
    """Volumes as points whose distances give similarities of pairs, each with a few others as an evaluation has it."""
    points = spread * rng.normal(size=(count, 6))
    similar = np.exp(-((points[:, None] - points[None]) ** 2).sum(2) / 12)
    ahead = (np.arange(count)[None] - np.arange(count)[:, None]) % count
    compared = (np.minimum(ahead, count - ahead) <= NEIGHBOURS) & (ahead > 0)
    features = {f"{name}_{axis}": rng.normal(size=(count, 2)) for name in ("continuity", "power") for axis in range(3)}
    features |= {"quantiles": rng.normal(size=(count, 3)), "radial": 1 + rng.uniform(size=(count, 8))}
    return VolumeSet("drawn", np.arange(count), features, {"ms_ssim": np.where(compared, similar, np.nan)})


def sentence(seed: int, held_out: int, spread: float) -> str:
    rng = np.random.default_rng(seed)
    reference, synthetic = drawn(rng, held_out), drawn(rng, COUNT, spread)
    row = Comparison(reference, reference, {}, permutations=1).between(synthetic)
    found = [line for line in headline({"rows": {"synthetic": row}, "spaces": {}}) if line.startswith("Variety")]
    return found[0].rpartition(": ")[2]


@pytest.mark.parametrize("held_out", [COUNT, COUNT // 2], ids=["equal numbers", "half as many held out"])
def test_equal_sets_are_called_different_no_more_often_than_nominal(held_out: int) -> None:
    claims = sum("as varied" not in sentence(seed, held_out, 1.0) for seed in range(REDRAWS))
    assert claims / REDRAWS <= 0.05 + 2 * (0.05 * 0.95 / REDRAWS) ** 0.5  # 4.6 % is nominal at two errors


@pytest.mark.parametrize(
    ("spread", "verdict"), [(0.2, "less varied than real ones."), (3, "more varied than real ones.")]
)
def test_a_collapse_and_an_excess_are_always_named(spread: float, verdict: str) -> None:
    assert {sentence(seed, COUNT, spread) for seed in range(20)} == {verdict}
