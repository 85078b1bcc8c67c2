"""What each fault of a generator must move in the report, and what it must leave alone.

The "real" volumes are random ellipsoids with random inner structure, asymmetric from left to right; features are block
averages, so that the tests are fast. A column has moved when it is farther from its floor than three errors allow.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from medical_diffusion_components.evaluation import AnatomySpace, Comparison, VolumeSet
from medical_diffusion_components.evaluation.slice_continuity import slice_correlations
from medical_diffusion_components.evaluation.spectrum import power_along, radial_power
from medical_diffusion_components.metrics import intensity_quantiles, pair_similarities

SIZE, COUNT = (16, 20, 24), 40
AXES = np.meshgrid(*(np.linspace(-1, 1, side) for side in SIZE), indexing="ij")
Volumes = np.ndarray


def subject(seed: int, mode: int = 0) -> np.ndarray:
    """An ellipsoid of random size with a bright spot on its right side, low-pass noise inside, and fine noise."""
    rng = np.random.default_rng([seed, mode])
    radii = rng.uniform(0.6, 0.9, 3) - 0.15 * mode
    body = sum((axis / radius) ** 2 for axis, radius in zip(AXES, radii)) < 1
    spot = sum((axis - place) ** 2 for axis, place in zip(AXES, (0.35, 0.1 * mode, 0))) < rng.uniform(0.3, 0.4) ** 2
    texture = gaussian_filter(rng.normal(size=SIZE), 1.2) * 1.5 + 0.1 * rng.normal(size=SIZE)
    return np.clip(np.where(body, 0.1 + texture + spot, -1 + 0.02 * rng.normal(size=SIZE)), -1, 1)


def cohort(first: int, count: int = COUNT, modes: int = 1) -> Volumes:
    return np.stack([subject(seed, seed % modes) for seed in range(first, first + count)])


def features(name: str, volumes: Volumes) -> VolumeSet:
    space = AnatomySpace(side=8)
    found = {"anatomy": np.stack([space(torch.from_numpy(v)[None].float()) for v in volumes])}
    for axis in range(3):
        found[f"continuity_{axis}"] = np.stack([slice_correlations(v, axis) for v in volumes])
        found[f"power_{axis}"] = np.stack([power_along(v, axis) for v in volumes])
    found["quantiles"] = np.stack([intensity_quantiles(v) for v in volumes])
    found["radial"] = np.stack([radial_power(v) for v in volumes])
    similar = pair_similarities(torch.from_numpy(volumes)[:, None].float(), 2)
    return VolumeSet(name, np.arange(len(volumes)), found, {"ms_ssim": similar})


def compare(training: Volumes, reference: Volumes, synthetic: Volumes) -> tuple[set[str], dict]:
    """Columns that have moved, and the cells."""
    comparison = Comparison(
        features("reference", reference),
        features("training", training),
        {"anatomy": AnatomySpace(side=8)},
        permutations=99,
    )
    cells = {
        name: cell
        for measures in comparison.between(features("synthetic", synthetic)).values()
        for name, cell in measures.items()
    }
    return {name for name, cell in cells.items() if has_moved(cell)}, cells


def has_moved(cell: dict) -> bool:
    expected = cell.get("real", cell["floor"])
    value = cell.get("at_floor_n", cell["value"])
    return abs(value - expected) > 3 * np.hypot(cell["se"], cell["floor_sd"])


@pytest.fixture(scope="module")
def real() -> tuple[Volumes, Volumes]:
    """Training and held-out volumes."""
    return cohort(0), cohort(1000)


def test_a_perfect_generator_moves_nothing(real: tuple[Volumes, Volumes]) -> None:
    moved, cells = compare(*real, cohort(2000))
    assert moved == set()
    assert cells["mmd"]["p"] > 0.01


FAULTS: dict[str, tuple[Callable[[Volumes], Volumes], set[str], set[str]]] = {
    # every volume is nearly the same good one
    "collapsed": (
        lambda fresh: np.repeat(fresh[:1], COUNT, axis=0) + 0.01 * np.random.default_rng(0).normal(size=fresh.shape),
        {"ms_ssim", "effective_number", "kid", "mmd", "recall", "clipped_coverage"},
        {"high_frequency"},
    ),
    "blurred": (
        lambda fresh: np.stack([gaussian_filter(v, 1.0) for v in fresh]),
        {"high_frequency", "continuity_H", "continuity_W", "continuity_D"},
        {"kid", "recall"},
    ),
    "shuffled slices": (
        lambda fresh: np.stack([v[:, :, np.random.default_rng(i).permutation(24)] for i, v in enumerate(fresh)]),
        {"continuity_D", "kid", "mmd"},
        {"continuity_H", "continuity_W"},
    ),
    "mirrored from left to right": (
        lambda fresh: fresh[:, ::-1].copy(),
        {"kid", "mmd"},
        {"high_frequency", "ms_ssim", "continuity_D", "nyquist_H"},
    ),
    "darker inside": (
        lambda fresh: np.where(fresh > -0.8, np.clip(fresh - 0.5, -1, 1), fresh),
        {"intensity"},
        {"kid", "recall"},
    ),
    "checkerboard": (
        lambda fresh: fresh + 0.15 * (-1.0) ** np.arange(SIZE[0])[None, :, None, None],
        {"nyquist_H", "high_frequency"},
        {"nyquist_W", "nyquist_D", "kid", "mmd"},
    ),
}


def test_the_document_names_these_columns() -> None:
    text = (Path(__file__).parents[3] / "docs" / "evaluation.md").read_text()
    table = text.split("| fault | moves | does not move |\n")[1].split("\n\n")[0].splitlines()[1:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    written = {name: tuple(set(re.findall(r"`(\w+)`", cell)) for cell in cells) for name, *cells in rows}
    assert written == {name: (must, must_not) for name, (_, must, must_not) in FAULTS.items()}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_moves_its_columns_and_leaves_others(name: str, real: tuple[Volumes, Volumes]) -> None:
    spoil, must, must_not = FAULTS[name]
    moved, _ = compare(*real, spoil(cohort(2000)))
    assert must <= moved, f"should have moved as well: {sorted(must - moved)}"
    assert not must_not & moved, f"should have stayed: {sorted(must_not & moved)}"


def test_ratios_and_comparisons_are_of_synthetic_over_real(real: tuple[Volumes, Volumes]) -> None:
    """A column that moves the wrong way would pass the table above."""
    _, cells = compare(*real, FAULTS["collapsed"][0](cohort(2000)))
    assert cells["effective_number"]["value"] < 0.5 and cells["recall"]["value"] < 0.5 * cells["recall"]["floor"]
    assert cells["ms_ssim"]["value"] > cells["ms_ssim"]["real"]
    _, cells = compare(*real, FAULTS["blurred"][0](cohort(2000)))
    assert cells["high_frequency"]["value"] < 0.8


def test_two_of_three_modes_missing_is_a_lack_of_coverage_and_not_of_precision() -> None:
    training, held_out = cohort(0, 60, modes=3), cohort(1200, 60, modes=3)
    one_mode = np.stack([subject(seed, 0) for seed in range(5000, 5060)])
    moved, cells = compare(training, held_out, one_mode)
    assert {"kid", "mmd", "recall", "clipped_coverage"} <= moved
    assert cells["precision"]["value"] > 0.9 > 0.75 > cells["clipped_coverage"]["value"]


def test_copies_of_training_volumes_move_nothing_here(real: tuple[Volumes, Volumes]) -> None:
    """They are good volumes: that they are not new is for the copy audit to say."""
    training, held_out = real
    synthetic = cohort(2000)
    synthetic[: COUNT // 5] = training[: COUNT // 5]
    moved, _ = compare(training, held_out, synthetic)
    assert moved == set()
