"""Drawing of phantoms: solids given by signed distances, painted one over another onto the points of a volume.

A solid is a function of the points that is negative inside, zero on the surface and grows with the distance
in mm near it. Solids combine by ``np.minimum`` (union), ``np.maximum`` (intersection), a change of sign
(complement) and :func:`smooth_union`. A voxel that a surface crosses gets the share of each side.

Distances: Quilez, "Distance functions" and "Smooth minimum" (articles on signed distance fields); a
superquadric's is its inside-outside function over the length of its gradient, Taubin, "Estimation of planar
curves, surfaces, and nonplanar space curves defined by implicit equations", IEEE PAMI 13(11), 1991.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from medical_diffusion_components.cohorts.writing import checked_size

__all__ = [
    "Numbers",
    "Phantom",
    "Points",
    "Scene",
    "SmoothField",
    "capsule",
    "centred_affine",
    "checked_grid",
    "render",
    "smooth_union",
    "superquadric",
    "tilt",
    "with_receiver_noise",
]

SLAB_VOXELS = 1 << 22  # as many are painted at a time, so that large volumes need little memory beside their own
FAINTEST = 0.08  # share of a voxel; thinner tubes are left out


class Phantom(NamedTuple):
    """An invented subject on RAS axes.

    ``image`` is float32: Hounsfield units for CT, intensities from 0 for MR. ``label`` is uint8 and names
    the structure of each voxel by the anatomy's table of labels; 0 is outside the body or the organ that the
    anatomy is about. ``affine`` maps voxels to mm. ``findings`` says what was drawn into this subject that others lack.

    Shape: ``image`` and ``label`` are ``(H, W, D)``, along right, anterior, superior; ``affine`` ``(4, 4)``.
    """

    image: np.ndarray
    affine: np.ndarray
    label: np.ndarray
    findings: Mapping[str, int]

    @property
    def mask(self) -> np.ndarray:
        """The outline, ``label > 0``: body, breasts, or leg. Shape ``(H, W, D)``, bool."""
        return self.label > 0


Numbers: TypeAlias = Sequence[float] | np.ndarray  # three of them, one per axis


class Points(NamedTuple):
    """Coordinates in mm: three arrays that broadcast against each other; x to the right, y anterior, z superior."""

    x: np.ndarray
    y: np.ndarray
    z: np.ndarray


def superquadric(
    points: Points,
    centre: Numbers,
    radii: Numbers,
    exponent: float = 2.0,
    rotation: np.ndarray | None = None,
) -> np.ndarray:
    """``|x/a|^n + |y/b|^n + |z/c|^n = 1``: an ellipsoid for n = 2, a box with round edges for larger n.

    Args:
        points: where to evaluate.
        centre: mm.
        radii: half axes a, b, c in mm; an infinite one makes a cylinder.
        exponent: n, at least 1.
        rotation: (3, 3), its columns are the directions of the axes; the world's axes if None.
    """
    offsets = [coordinate - np.float32(middle) for coordinate, middle in zip(points, centre)]
    if rotation is not None:
        columns = np.asarray(rotation, dtype=np.float32).T
        offsets = [sum(c * o for c, o in zip(column, offsets)) for column in columns]
    level: Any = np.float32(1e-12)  # not zero in the middle; numbers that grow to arrays
    squared_slope: Any = np.float32(1e-30)
    for offset, radius in zip(offsets, radii):
        if np.isfinite(radius):
            scaled = np.abs(offset) * np.float32(1 / radius)
            lower = scaled if exponent == 2 else scaled ** np.float32(exponent - 1)
            level = level + lower * scaled
            squared_slope = squared_slope + np.square(lower * np.float32(1 / radius))
    root = np.sqrt(level) if exponent == 2 else level ** np.float32(1 / exponent)
    # the gradient of the n-th root is that of the sum over root^(n - 1), and root^n is the sum
    distance = (root - 1) * (level / root) / np.sqrt(squared_slope)
    # the middle has no gradient: no point is further inside than the smallest radius
    return np.maximum(distance, np.float32(-min(radii)))


def capsule(points: Points, start: Numbers, end: Numbers, radius: float, end_radius: float | None = None) -> np.ndarray:
    """Distance to a segment less a radius that runs from ``radius`` to ``end_radius``; all in mm."""
    axis = np.subtract(end, start, dtype=np.float32)
    offsets = [coordinate - np.float32(origin) for coordinate, origin in zip(points, start)]
    along = sum(o * a for o, a in zip(offsets, axis)) / max(float(axis @ axis), 1e-12)
    along = np.clip(along, 0, 1)
    distance = np.sqrt(sum((o - along * a) ** 2 for o, a in zip(offsets, axis)))
    growth = 0.0 if end_radius is None else end_radius - radius
    return distance - np.float32(radius) - np.float32(growth) * along


def smooth_union(first: np.ndarray, second: np.ndarray, blend: float) -> np.ndarray:
    """Union with a fillet: where the two distances differ by less than ``blend`` mm, at most ``blend / 4`` is added."""
    overlap = np.maximum(blend - np.abs(first - second), 0) / np.float32(blend)
    return np.minimum(first, second) - overlap * overlap * np.float32(blend / 4)


def tilt(degrees: Sequence[float]) -> np.ndarray:
    """Rotation about x, then y, then z, (3, 3)."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        turn = np.eye(3)
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn[[i, j], [i, j]] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix


class SmoothField:
    """A random scalar field of zero mean and unit variance on all of space: a cubic B-spline with random coefficients.

    The coefficients repeat after ``PERIOD`` knots. The field is the same at every size of the volume.

    Args:
        rng: source of randomness.
        knot: distance of the knots in mm; what varies faster is not in the field.
    """

    PERIOD = 32
    _VARIANCE = 151 / 315  # mean over a knot interval of the sum of the squared basis functions, per axis

    def __init__(self, rng: np.random.Generator, knot: float) -> None:
        self.knot = knot
        coefficients = rng.standard_normal((self.PERIOD,) * 3, dtype=np.float32)
        self.coefficients = coefficients / np.float32(self._VARIANCE**1.5)

    def at(self, axes: Sequence[np.ndarray]) -> np.ndarray:
        """Values on the grid of three 1D coordinate arrays in mm, (len(x), len(y), len(z))."""
        field = self.coefficients
        for coordinates in axes:
            field = np.tensordot(field, self._basis(coordinates), axes=(0, 1))  # the next axis comes to the front
        return field

    def _basis(self, coordinates: np.ndarray) -> np.ndarray:
        knots = np.asarray(coordinates, dtype=np.float64) / self.knot
        first = np.floor(knots).astype(int)
        t = knots - first
        weights = [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]
        basis = np.zeros((len(knots), self.PERIOD), dtype=np.float32)
        for shift, weight in enumerate(weights):
            basis[np.arange(len(knots)), (first + shift - 1) % self.PERIOD] = weight / 6
        return basis


class Scene:
    """The points of a volume, or of a box in it, and what has been painted there so far.

    Attributes:
        axes: coordinates of the voxels in mm, one array per axis.
        points: the same after the subject's own deformation, where the solids are evaluated; (H, W, D) each.
        image: float32, painted in place.
        label: uint8, painted in place.
        edge: width in mm over which a surface is blurred, about a voxel.
    """

    def __init__(
        self, axes: Sequence[np.ndarray], points: Points, image: np.ndarray, label: np.ndarray, edge: float
    ) -> None:
        self.axes = list(axes)
        self.points = points
        self.image = image
        self.label = label
        self.edge = np.float32(edge)

    def paint(
        self, distance: np.ndarray, value: float | np.ndarray, label: int | None = None, opacity: float = 1.0
    ) -> None:
        """Cover what is inside the solid with ``value``; ``label`` goes where the solid has most of the voxel."""
        share = np.clip(np.float32(0.5) - distance / self.edge, 0, np.float32(1)) * np.float32(opacity)
        self.image += share * (value - self.image)
        if label is not None:
            self.label[share >= 0.5] = label

    def scaled(self, factors: Numbers) -> Scene:
        """The same image in a world that is ``factors`` times as large along each axis."""
        axes = [axis / factor for axis, factor in zip(self.axes, factors)]
        points = Points(*(c * np.float32(1 / factor) for c, factor in zip(self.points, factors)))
        return Scene(axes, points, self.image, self.label, float(self.edge))

    def mirrored(self) -> Scene:
        """The same image in a world where left and right are exchanged."""
        axes = [-self.axes[0][::-1], *self.axes[1:]]
        x, y, z = (coordinate[::-1] for coordinate in self.points)
        return Scene(axes, Points(-x, y, z), self.image[::-1], self.label[::-1], float(self.edge))

    def near(self, low: Numbers, high: Numbers, margin: float = 9.0) -> tuple[Scene, tuple]:
        """The part of the scene in a box, given in mm, and its slices; painting it paints the whole.

        ``margin`` is for the blurred edge and the deformation.
        """
        reach = margin + float(self.edge)
        box = tuple(slice(*np.searchsorted(axis, (a - reach, b + reach))) for axis, a, b in zip(self.axes, low, high))
        axes = [axis[part] for axis, part in zip(self.axes, box)]
        points = Points(*(coordinate[box] for coordinate in self.points))
        return Scene(axes, points, self.image[box], self.label[box], float(self.edge)), box

    def tube(
        self,
        path: Sequence[Sequence[float]],
        radii: Sequence[float],
        value: float,
        label: int | None = None,
        inside: np.ndarray | None = None,
    ) -> None:
        """Paint a chain of capsules; one thinner than a voxel becomes fainter instead.

        Args:
            path: corners in mm.
            radii: at the corners, mm.
            value: what to paint.
            label: what to write into the label map.
            inside: distance of a solid, on the whole scene, that the tube does not leave.
        """
        for start, end, first, last in zip(path[:-1], path[1:], radii[:-1], radii[1:]):
            shown = [max(radius, float(self.edge) / 2) for radius in (first, last)]
            opacity = ((first + last) / sum(shown)) ** 2
            if opacity < FAINTEST:
                continue
            part, box = self.near(np.minimum(start, end) - max(shown), np.maximum(start, end) + max(shown))
            if part.image.size == 0:
                continue
            distance = capsule(part.points, start, end, *shown)
            if inside is not None:
                distance = np.maximum(distance, inside[box])
            part.paint(distance, value, label, opacity)


def render(
    paint: Callable[[Scene], None],
    size: Sequence[int],
    spacing: Sequence[float],
    background: float,
    warp: Sequence[SmoothField],
    amplitude: float,
    centre: Sequence[float] = (0.0, 0.0, 0.0),
) -> tuple[np.ndarray, np.ndarray]:
    """Paint a volume slab by slab: image (float32) and label (uint8), both ``(H, W, D)``.

    Args:
        paint: paints a scene; called once per slab, so it must draw no random numbers.
        size: voxels along right, anterior, superior.
        spacing: mm.
        background: value before anything is painted.
        warp: one field per axis, the subject's own deformation.
        amplitude: standard deviation of the deformation, mm.
        centre: of the volume in the world, mm.
    """
    image = np.full(size, background, dtype=np.float32)
    label = np.zeros(size, dtype=np.uint8)
    axes = [(np.arange(n) - (n - 1) / 2) * s + middle for n, s, middle in zip(size, spacing, centre)]
    edge = float(np.prod(spacing) ** (1 / 3))
    for part in _slabs(size):
        cut = [axes[0], axes[1], axes[2][part]]
        grid = np.meshgrid(*(axis.astype(np.float32) for axis in cut), indexing="ij", sparse=True)
        points = Points(*(g + np.float32(amplitude) * field.at(cut) for g, field in zip(grid, warp)))
        paint(Scene(cut, points, image[..., part], label[..., part], edge))
    return image, label


def checked_grid(
    subject: int, seed: int, size: Sequence[int], spacing: Sequence[float] | None, field_of_view: Sequence[float]
) -> tuple[tuple[int, int, int], tuple[float, float, float]]:
    """Size and spacing as plain numbers; without a spacing, the field of view in mm is shared out among the voxels.

    Raises:
        ValueError: negative subject or seed; a size that is not three whole numbers of at least 8; a spacing
            that is not three positive numbers.
    """
    if subject < 0 or seed < 0:
        raise ValueError(f"subject and seed start at 0, got subject {subject}, seed {seed}")
    size = checked_size(size)
    if spacing is None:
        spacing = [length / n for length, n in zip(field_of_view, size)]
    spacing = tuple(float(s) for s in np.atleast_1d(spacing))
    if len(spacing) != 3 or not all(0 < s < np.inf for s in spacing):
        raise ValueError(f"spacing must be three positive numbers in mm, got {spacing}")
    return size, spacing


def centred_affine(
    size: Sequence[int], spacing: Sequence[float], centre: Sequence[float] = (0.0, 0.0, 0.0)
) -> np.ndarray:
    """RAS affine (4, 4) of a volume whose centre lies at ``centre`` in the world, mm."""
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = [middle - s * (n - 1) / 2 for n, s, middle in zip(size, spacing, centre)]
    return affine


def with_receiver_noise(signal: np.ndarray, rng: np.random.Generator, sigma: float) -> np.ndarray:
    """Magnitude of the signal with complex Gaussian noise: Rician, as in MR. Float32, same shape."""
    real, imaginary = (rng.standard_normal(signal.shape, dtype=np.float32) for _ in range(2))
    return np.hypot(signal + np.float32(sigma) * real, np.float32(sigma) * imaginary)


def _slabs(size: Sequence[int]) -> Iterator[slice]:
    thick = max(1, SLAB_VOXELS // (size[0] * size[1]))
    for first in range(0, size[2], thick):
        yield slice(first, min(first + thick, size[2]))
