"""Random smooth invertible deformations of space, from stationary velocity fields.

A velocity field ``v`` that does not change with time generates the diffeomorphism ``exp(v)``, computed by
scaling and squaring: from ``exp(v / 2^n)``, nearly ``x + v(x) / 2^n``, by ``n`` compositions of the map with
itself. Its inverse is ``exp(-v)``.

Source: Arsigny et al., "A log-Euclidean framework for statistics on diffeomorphisms",
MICCAI 2006.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

__all__ = ["Diffeomorphism", "random_velocity", "sample", "smooth_noise"]

NUM_SQUARINGS = 6


class Diffeomorphism:
    """``x -> exp(v)(A x)`` and its inverse, on points in mm.

    Args:
        velocity: ``v`` in mm on a regular grid, (3, X, Y, Z). Outside the grid its border values hold.
        origin: world coordinates of the grid's first node, mm.
        spacing: distance of the grid's nodes, mm.
        matrix: ``A``, (3, 3), with a positive determinant.
    """

    def __init__(self, velocity: torch.Tensor, origin: Sequence[float], spacing: float, matrix: np.ndarray) -> None:
        if velocity.ndim != 4 or velocity.shape[0] != 3:
            raise ValueError(f"expected a velocity field (3, X, Y, Z), got {tuple(velocity.shape)}")
        if np.linalg.det(matrix) <= 0:
            raise ValueError("the linear part must keep the orientation: its determinant is not positive")
        self.origin = torch.tensor(origin, dtype=torch.float32)
        self.spacing = spacing
        self.matrix = torch.tensor(matrix, dtype=torch.float32)
        self.displacement = self._exponential(velocity)
        self.inverse_displacement = self._exponential(-velocity)

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        """Where points (..., 3) in mm go."""
        points = points @ self.matrix.T
        return points + self._at(self.displacement, points)

    def inverse(self, points: torch.Tensor) -> torch.Tensor:
        """Where points (..., 3) in mm came from."""
        points = points + self._at(self.inverse_displacement, points)
        return points @ torch.linalg.inv(self.matrix).T

    def _exponential(self, velocity: torch.Tensor) -> torch.Tensor:
        shape = velocity.shape[1:]
        nodes = torch.stack(torch.meshgrid(*(torch.arange(n) for n in shape), indexing="ij"), dim=-1)
        nodes = nodes * self.spacing + self.origin  # (X, Y, Z, 3)
        displacement = velocity / 2**NUM_SQUARINGS
        for _ in range(NUM_SQUARINGS):
            step = displacement.movedim(0, -1)
            displacement = (step + self._at(displacement, nodes + step)).movedim(-1, 0)
        return displacement.contiguous()

    def _at(self, field: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        return sample(field, (points - self.origin) / self.spacing, padding_mode="border").movedim(0, -1)


def sample(volume: torch.Tensor, index: torch.Tensor, padding_mode: str = "zeros") -> torch.Tensor:
    """Trilinear values of a volume (C, X, Y, Z) at fractional voxel indices (..., 3).

    Shape:
        (C, X, Y, Z), (..., 3) -> (C, ...)
    """
    last = torch.tensor(volume.shape[1:], dtype=torch.float32) - 1
    grid = (2 * index / last - 1).flip(-1)  # PyTorch names the last axis first
    # (1, C, 1, 1, points)
    values = torch.nn.functional.grid_sample(
        volume.unsqueeze(0), grid.reshape(1, 1, 1, -1, 3), padding_mode=padding_mode, align_corners=True
    )
    return values.reshape(volume.shape[0], *index.shape[:-1])


def smooth_noise(rng: np.random.Generator, shape: Sequence[int], sigma: float) -> np.ndarray:
    """Gaussian random field of unit variance: white noise under a Gaussian filter of ``sigma`` grid steps."""
    white = rng.standard_normal(tuple(shape), dtype=np.float32)
    # a periodic filter leaves the variance the same everywhere; the divisor is its closed form
    field = gaussian_filter(white, sigma, mode="wrap")
    return field * (2 * np.sqrt(np.pi) * sigma) ** 1.5


def random_velocity(
    rng: np.random.Generator,
    shape: Sequence[int],
    spacing: float,
    amplitude: Mapping[float, float],
    symmetry: float = 0.0,
) -> torch.Tensor:
    """A sum of Gaussian random vector fields of several smoothness scales.

    Args:
        rng: source of randomness.
        shape: (X, Y, Z) of the grid, whose middle plane along X is the plane of mirror symmetry.
        spacing: distance of the grid's nodes, mm.
        amplitude: smoothing sigma in mm -> standard deviation per component in mm.
        symmetry: correlation between a point's velocity and that of its mirror image, in [0, 1].

    Shape:
        returns (3, X, Y, Z)
    """
    if not 0 <= symmetry <= 1:
        raise ValueError(f"symmetry is a correlation in [0, 1], got {symmetry}")
    velocity = np.zeros((3, *shape), dtype=np.float32)
    for sigma, std in amplitude.items():
        for axis in range(3):
            velocity[axis] += std * smooth_noise(rng, shape, sigma / spacing)
    mirrored = velocity[:, ::-1] * np.array([-1, 1, 1], dtype=np.float32).reshape(3, 1, 1, 1)
    together, apart = np.sqrt(1 + symmetry) / 2, np.sqrt(1 - symmetry) / 2
    blend = (together + apart) * velocity + (together - apart) * mirrored
    return torch.from_numpy(blend.astype(np.float32))
