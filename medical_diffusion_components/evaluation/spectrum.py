"""Power of volumes at each spatial frequency: blur is missing power at high ones, a checkerboard excess at the highest.

Durall et al., "Watch your Up-Convolution", CVPR 2020, for what transposed convolutions do to the spectrum.
"""

from __future__ import annotations

import numpy as np

__all__ = ["high_frequency_amplitude", "nyquist_excess", "power_along", "radial_power"]


def radial_power(volume: np.ndarray, bins: int = 16) -> np.ndarray:
    """Mean power in shells of the spatial frequency, from 0 to the Nyquist frequency of the axes, (bins,).

    Args:
        volume: (H, W, D); its mean is taken away first.
        bins: shells of equal thickness, in cycles per voxel.
    """
    power = np.square(np.abs(np.fft.fftn(volume - np.mean(volume)))) / volume.size
    axes = np.meshgrid(*(np.fft.fftfreq(side) for side in volume.shape), indexing="ij", sparse=True)
    radius = np.sqrt(sum(np.square(axis) for axis in axes))
    shell = (radius / 0.5 * bins).astype(int)
    # the Nyquist frequency itself is in the last shell; the corners beyond it are left out
    shell = np.where(radius > 0.5 + 1e-9, bins, np.minimum(shell, bins - 1))
    sums = np.bincount(shell.ravel(), power.ravel(), bins + 1)
    counts = np.bincount(shell.ravel(), minlength=bins + 1)
    return sums[:bins] / np.maximum(counts[:bins], 1)


def power_along(volume: np.ndarray, axis: int) -> np.ndarray:
    """Mean power of the lines along an axis at each frequency from 0 to the Nyquist frequency, (n // 2 + 1,).

    Args:
        volume: (H, W, D).
        axis: 0, 1 or 2.
    """
    return np.square(np.abs(np.fft.rfft(volume, axis=axis))).mean(axis=tuple(a for a in range(3) if a != axis))


def nyquist_excess(power: np.ndarray) -> float:
    """Power at the Nyquist frequency over the geometric mean of the two frequencies below it.

    About 1 in real volumes and in white noise; a checkerboard, as transposed convolutions leave it, has more.

    Args:
        power: as :func:`power_along` gives it, along an axis with an even number of voxels; of one volume or a mean.

    Raises:
        ValueError: fewer than four frequencies.
    """
    if len(power) < 4:
        raise ValueError(f"expected power at four frequencies or more, got {len(power)}")
    return float(power[-1] / max(float(np.sqrt(power[-2] * power[-3])), 1e-30))


def high_frequency_amplitude(power: np.ndarray) -> float:
    """Root of the summed power above half the Nyquist frequency; compare with that of real volumes.

    Args:
        power: as :func:`radial_power` gives it.
    """
    return float(np.sqrt(power[len(power) // 2 :].sum()))
