"""Copies of a volume as a generator might make them, to try a copy audit on; tests use them, too."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy.ndimage import affine_transform, gaussian_filter, map_coordinates, zoom

from medical_diffusion_components.chance import numpy_generator

__all__ = ["PLANTS", "planted"]

RANGE = (-1.0, 1.0)


def _identity(volume: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return volume


def _flip(volume: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return volume[::-1]


def _noise(volume: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return volume + 0.1 * rng.standard_normal(volume.shape)


def _blur(sigma: float) -> Callable[[np.ndarray, np.random.Generator], np.ndarray]:
    return lambda volume, rng: gaussian_filter(volume, sigma, mode="nearest")


def _warp(most: float) -> Callable[[np.ndarray, np.random.Generator], np.ndarray]:
    """A smooth displacement of at most ``most`` voxels of a volume with 64 per side, in proportion with others."""

    def warp(volume: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        coarse = rng.standard_normal((3, 4, 4, 4))
        field = np.stack([zoom(part, np.array(volume.shape) / 4, order=3) for part in coarse])
        field *= most * np.array(volume.shape).reshape(3, 1, 1, 1) / 64 / np.abs(field).max()
        places = np.indices(volume.shape) + field
        return map_coordinates(volume, places, order=1, mode="nearest")

    return warp


def _affine(matrix: np.ndarray, shift: float = 0.0) -> Callable[[np.ndarray, np.random.Generator], np.ndarray]:
    """About the middle; ``shift`` in voxels of a volume with 64 per side, in proportion with others."""

    def move(volume: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        size = np.array(volume.shape)
        scaled = np.diag(size) @ matrix @ np.diag(1 / size)  # the same in units of the sides
        middle = (size - 1) / 2
        return affine_transform(volume, scaled, middle - scaled @ middle + shift * size / 64, order=1, mode="nearest")

    return move


def _gamma(volume: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return 2 * ((volume.clip(*RANGE) + 1) / 2) ** 0.7 - 1


def _scale(volume: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return 0.75 * (volume + 1) - 1


def _several(volume: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _warp(1.5)(volume[::-1], rng) + 0.05 * rng.standard_normal(volume.shape)


_ANGLE = np.radians(5)
_ROTATION = np.array([[np.cos(_ANGLE), -np.sin(_ANGLE), 0], [np.sin(_ANGLE), np.cos(_ANGLE), 0], [0, 0, 1]])

# all but what needs a first stage: that is a plant of its own
PLANTS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "identity": _identity,
    "right-left flip": _flip,
    "noise 0.1": _noise,
    "blur 1": _blur(1.0),
    "blur 2": _blur(2.0),
    "warp 1.5": _warp(1.5),
    "warp 3": _warp(3.0),
    "shift 2": _affine(np.eye(3), 2.0),
    "rotation 5 degrees": _affine(_ROTATION),
    "zoom 6 %": _affine(np.eye(3) / 1.06),
    "gamma 0.7": _gamma,
    "scale 0.75": _scale,
    "flip, warp and noise": _several,
}


def planted(volumes: torch.Tensor, name: str, seed: int = 0) -> torch.Tensor:
    """A copy of each volume, (N, 1, H, W, D) in [-1, 1], scaled to [-1, 1] as files are when they are read."""
    made = []
    for number, volume in enumerate(volumes[:, 0].numpy()):
        copy = PLANTS[name](volume, numpy_generator(seed, number))
        low, high = copy.min(), copy.max()
        made.append(2 * (copy - low) / (high - low) - 1)
    return torch.from_numpy(np.stack(made)).float()[:, None]
