"""Two sets of volumes compared in every space, with floors and errors.

Every number has the same number beside it for two halves of the held-out patients, the floor: what "equal" reads at this
size. Measures that depend on the number of volumes are also given at the floor's number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from medical_diffusion_components.chance import numpy_generator
from medical_diffusion_components.evaluation.feature_space import FeatureSpace
from medical_diffusion_components.evaluation.slice_continuity import continuity_distance
from medical_diffusion_components.evaluation.spectrum import high_frequency_amplitude, nyquist_excess
from medical_diffusion_components.metrics.diversity import mean_similarity
from medical_diffusion_components.metrics.effective_number import effective_number
from medical_diffusion_components.metrics.frechet import frechet_distance
from medical_diffusion_components.metrics.intensity import intensity_distance
from medical_diffusion_components.metrics.jackknife import group_jackknife
from medical_diffusion_components.metrics.mmd import (
    GaussianMixture,
    kernel_matrices,
    median_distance,
    mmd_squared,
    permutation_p,
)
from medical_diffusion_components.metrics.neighbours import NeighbourMeasures, distances, measures_of_distances

__all__ = ["PROTOCOL", "Comparison", "VolumeSet"]

PROTOCOL = "1"  # counts up with any change of a constant or an estimator: numbers compare within a protocol alone
NEIGHBOURS = 5
HALVINGS = 20
FEWEST_HELD_OUT = 4  # patients: two halves of two each are the least that a floor can be of
FEWEST = 3  # of which the jackknife leaves two, and a covariance needs two
VOLUMES = "volumes"  # the "space" of measures that need no features
AXES = ("H", "W", "D")
Indices = np.ndarray


class VolumeSet(NamedTuple):
    """Features and similarities of one set of volumes."""

    name: str
    groups: np.ndarray  # (N,) whose volume it is; synthetic volumes are each their own
    features: Mapping[str, np.ndarray]  # as a FeatureReader gives them
    similarities: Mapping[str, np.ndarray]  # "ms_ssim", "ms_ssim_published": (N, N), NaN where not compared

    def __len__(self) -> int:
        return len(self.groups)


class Measure(NamedTuple):
    """How one number follows from the members that count."""

    statistic: Callable[[Indices, Indices], float]  # of both sets
    better: str  # lower, higher, near_one or near_real
    depends_on_n: bool = False
    parts: Callable[[Indices, Indices], Mapping[str, float]] | None = None
    real: Callable[[Indices], float] | None = None  # the same number of the second set alone


class Comparison:
    """Compares sets of volumes with held-out ones.

    Args:
        reference: real volumes that nothing was trained on.
        training: the generator's training volumes; they give every space its unit, so that it does not depend on the
            model that is judged.
        spaces: name -> space, as of the FeatureReader.
        permutations: for the p-value of the MMD.
        seed: of permutations and halvings.

    Raises:
        ValueError: fewer than four patients in the reference, or a training set of fewer than two volumes.
    """

    def __init__(
        self,
        reference: VolumeSet,
        training: VolumeSet,
        spaces: Mapping[str, FeatureSpace],
        permutations: int = 999,
        seed: int = 0,
    ) -> None:
        patients = len(np.unique(reference.groups))
        if patients < FEWEST_HELD_OUT:
            raise ValueError(f"a comparison needs at least {FEWEST_HELD_OUT} held-out patients, got {patients}")
        if len(training) < 2:
            raise ValueError(f"a comparison needs at least 2 training volumes, got {len(training)}")
        self.reference = reference
        self.training = training
        self.spaces = dict(spaces)
        self.permutations = permutations
        self.seed = seed
        self.halves = _halvings(reference.groups, HALVINGS, seed)
        self.floors = self._floors()

    def between(self, x: VolumeSet, y: VolumeSet | None = None) -> dict[str, dict[str, dict[str, Any]]]:
        """Space -> measure -> value, error, floor and what they mean, for independent sets.

        Args:
            x: the set that is judged.
            y: what it is compared with; None is the reference.

        Raises:
            ValueError: a set of fewer than three patients (or synthetic volumes), whose errors nobody can give.
        """
        y = self.reference if y is None else y
        for one in (x, y):
            if len(np.unique(one.groups)) < FEWEST:
                raise ValueError(
                    f"a comparison needs at least {FEWEST} volumes of different patients for its errors, got "
                    f"{len(np.unique(one.groups))} {one.name}: give a larger --num_volumes, or more files"
                )
        found: dict[str, dict[str, dict[str, Any]]] = {}
        for space, measures in self._measures(x, y).items():
            found[space] = {}
            for name, measure in measures.items():
                estimate = group_jackknife(measure.statistic, x.groups, y.groups)
                cell = {"value": estimate.value, "se": estimate.error, "n": len(x), "m": len(y)}
                everyone = np.arange(len(x)), np.arange(len(y))
                if measure.parts is not None:
                    cell |= measure.parts(*everyone)
                cell |= _real(measure, y)
                if measure.depends_on_n:
                    cell["at_floor_n"] = self._at_floor_size(measure, x, y)
                found[space][name] = cell | self.floors[space][name] | {"better": measure.better}
            if "mmd" in found[space]:
                found[space]["mmd"]["p"] = self._p_value(space, x, y)
        return found

    def paired(self, x: VolumeSet, y: VolumeSet | None = None) -> dict[str, dict[str, dict[str, Any]]]:
        """As :meth:`between`, where member i of both sets is the same patient's: halves of the patients are compared.

        Value and error are mean and standard deviation over the halvings that the floor uses.
        """
        y = self.reference if y is None else y
        found: dict[str, dict[str, dict[str, Any]]] = {}
        for space, measures in self._measures(x, y).items():
            found[space] = {}
            for name, measure in measures.items():
                cell = dict(zip(("value", "se"), self._over_halves(measure)))
                cell |= {"n": len(self.halves[0][0]), "m": len(self.halves[0][1])}
                cell |= _real(measure, y)
                if measure.depends_on_n:
                    cell["at_floor_n"] = cell["value"]
                found[space][name] = cell | self.floors[space][name] | {"better": measure.better}
        return found

    def _floors(self) -> dict[str, dict[str, dict[str, float]]]:
        found: dict[str, dict[str, dict[str, float]]] = {}
        for space, measures in self._measures(self.reference, self.reference).items():
            found[space] = {}
            for name, measure in measures.items():
                floor_n = min(len(self.halves[0][0]), len(self.halves[0][1]))
                found[space][name] = dict(zip(("floor", "floor_sd"), self._over_halves(measure))) | {"floor_n": floor_n}
        return found

    def _over_halves(self, measure: Measure) -> tuple[float, float]:
        """Mean and standard deviation over those halvings in which there is a pair to compare."""
        values = np.array([measure.statistic(one, other) for one, other in self.halves])
        values = values[~np.isnan(values)]
        return (float(values.mean()), float(values.std(ddof=1))) if len(values) > 1 else (float("nan"), float("nan"))

    def _at_floor_size(self, measure: Measure, x: VolumeSet, y: VolumeSet) -> float:
        size, rng = min(len(self.halves[0][0]), len(x)), numpy_generator(self.seed, 1)
        draws = [
            measure.statistic(rng.permutation(len(x))[:size], rng.permutation(len(y))[:size]) for _ in range(HALVINGS)
        ]
        return float(np.mean(draws))

    def _p_value(self, space: str, x: VolumeSet, y: VolumeSet) -> float:
        zx, zy = self._standardised(space, x, y)
        kernels = kernel_matrices(zx, zy, self._gaussian(space))
        return permutation_p(kernels, x.groups, y.groups, self.permutations, self.seed)

    def _standardised(self, space: str, *sets: VolumeSet) -> list[np.ndarray]:
        training = self.training.features[space]
        return [self.spaces[space].standardise(one.features[space], training) for one in sets]

    def _gaussian(self, space: str) -> GaussianMixture:
        return GaussianMixture(median_distance(*self._standardised(space, self.training)))

    def _measures(self, x: VolumeSet, y: VolumeSet) -> dict[str, dict[str, Measure]]:
        found = {space: self._in_space(space, x, y) for space in self.spaces}
        return found | {VOLUMES: _of_volumes(x, y)}

    def _fewest_left(self, *sets: VolumeSet) -> int:
        """The smallest number of volumes in a half, or without the patient of the most volumes."""
        halves = [len(half) for pair in self.halves for half in pair]
        return min(*halves, *(len(one) - int(np.unique(one.groups, return_counts=True)[1].max()) for one in sets))

    def _in_space(self, space: str, x: VolumeSet, y: VolumeSet) -> dict[str, Measure]:
        zx, zy = self._standardised(space, x, y)
        gaussian = self._gaussian(space)
        unit = float(np.sqrt(np.square(self.training.features[space]).mean()))
        kid = (
            kernel_matrices(x.features[space] / unit, y.features[space] / unit)
            if self.spaces[space].one_scale
            else kernel_matrices(zx, zy)
        )
        mmd = kernel_matrices(zx, zy, gaussian)
        measures = {
            "kid": Measure(lambda i, j: mmd_squared(kid, i, j), "lower"),
            "mmd": Measure(lambda i, j: mmd_squared(mmd, i, j), "lower"),
            "fd": Measure(
                lambda i, j: frechet_distance(zx[i], zy[j]).value,
                "lower",
                depends_on_n=True,
                parts=lambda i, j: dict(list(frechet_distance(zx[i], zy[j])._asdict().items())[1:]),
            ),
            "effective_number": Measure(
                lambda i, j: effective_number(zx[i], gaussian.bandwidth) / effective_number(zy[j], gaussian.bandwidth),
                "near_one",
                depends_on_n=True,
            ),
        }
        if min(len(x), len(y)) // 2 > NEIGHBOURS + 1 and self._fewest_left(x, y) > NEIGHBOURS:
            measures |= _of_neighbours(distances(zx, zx), distances(zy, zy), distances(zx, zy))
        return measures


def _real(measure: Measure, y: VolumeSet) -> dict[str, float]:
    """The measure of the second set alone, with its error, where there is one."""
    if measure.real is None:
        return {}
    found = group_jackknife(measure.real, y.groups)
    return {"real": found.value, "real_se": found.error}


def _of_neighbours(xx: np.ndarray, yy: np.ndarray, xy: np.ndarray) -> dict[str, Measure]:
    def one(name: str) -> Callable[[Indices, Indices], float]:
        def statistic(i: Indices, j: Indices) -> float:
            found = measures_of_distances(xx[np.ix_(i, i)], yy[np.ix_(j, j)], xy[np.ix_(i, j)], NEIGHBOURS)
            return float(getattr(found, name))

        return statistic

    return {name: Measure(one(name), "higher", depends_on_n=True) for name in NeighbourMeasures._fields}


def _of_volumes(x: VolumeSet, y: VolumeSet) -> dict[str, Measure]:
    measures: dict[str, Measure] = {}
    for axis, letter in enumerate(AXES):
        one, other = (s.features[f"continuity_{axis}"] for s in (x, y))
        measures[f"continuity_{letter}"] = _continuity(one, other)
        one, other = (s.features[f"power_{axis}"] for s in (x, y))
        if one.shape[1] >= 4:
            measures[f"nyquist_{letter}"] = _nyquist(one, other)
    x_levels, y_levels = x.features["quantiles"], y.features["quantiles"]
    measures["intensity"] = Measure(
        lambda i, j: intensity_distance(x_levels[i], y_levels[j]), "lower", depends_on_n=True
    )
    one, other = x.features["radial"], y.features["radial"]
    measures["high_frequency"] = Measure(
        lambda i, j: high_frequency_amplitude(one[i].mean(0)) / high_frequency_amplitude(other[j].mean(0)), "near_one"
    )
    for name in x.similarities.keys() & y.similarities.keys():
        measures[name] = _similarity(x.similarities[name], y.similarities[name])
    return dict(sorted(measures.items()))


def _continuity(one: np.ndarray, other: np.ndarray) -> Measure:
    return Measure(lambda i, j: continuity_distance(one[i], other[j]), "lower", depends_on_n=True)


def _nyquist(one: np.ndarray, other: np.ndarray) -> Measure:
    return Measure(
        lambda i, j: nyquist_excess(one[i].mean(0)), "near_real", real=lambda j: nyquist_excess(other[j].mean(0))
    )


def _similarity(one: np.ndarray, other: np.ndarray) -> Measure:
    def mean(similarities: np.ndarray, kept: Indices) -> float:
        compared = np.isfinite(similarities[np.ix_(kept, kept)]).any()  # of few volumes, not every half has such a pair
        return mean_similarity(similarities, kept) if compared else float("nan")

    return Measure(lambda i, j: mean(one, i), "near_real", real=lambda j: mean(other, j))


def _halvings(groups: np.ndarray, count: int, seed: int) -> list[tuple[Indices, Indices]]:
    """Random halves of the patients, as indices of their volumes."""
    rng, patients = numpy_generator(seed, 0), np.unique(groups)
    found = []
    for _ in range(count):
        half = rng.permutation(patients)[: len(patients) // 2]
        inside = np.isin(groups, half)
        found.append((np.flatnonzero(inside), np.flatnonzero(~inside)))
    return found
