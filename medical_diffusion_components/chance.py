"""The one source of randomness: whatever this package draws follows from a seed that is made here.

What a draw depends on:

* *A seed and nothing else*: :func:`numpy_generator`, :func:`torch_generator`, :func:`normal_of_seed`. A phantom, an order
  of cases or a volume's starting noise is the same whatever was drawn before.
* *The iteration of a training*: :func:`reseed` sets torch's own generator before each one, the same on all processes;
  :func:`draw_integers`, :func:`draw_normal` and their siblings draw from it for the whole global batch and return the rows
  of this process.
* *Seed, step and position*: :func:`counter_bits` and :func:`counter_normal`, counter-based random numbers (Salmon et al.,
  "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011), mixed by the finaliser of MurmurHash3 and made Gaussian by Box
  and Muller (1958). MONAI's schedulers draw the noise of the ancestral sampler for a whole batch from one generator, so
  a volume depends on its neighbours in the batch and on the device; here it depends on its own seed only. The random bits
  are whole numbers, so the noise is the same on every device up to the rounding of logarithm and cosine, and it can be
  scripted.

:func:`derive_seed` makes one seed of several integers, :func:`seed_of_name` makes one of a name. MONAI's random transforms
draw from states of their own, which the data sets set from such a seed for every case.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from medical_diffusion_components.distributed import process_rank, world_size

__all__ = [
    "counter_bits",
    "counter_normal",
    "derive_seed",
    "draw_integers",
    "draw_normal",
    "draw_stratified",
    "draw_uniform",
    "normal_of_seed",
    "numpy_generator",
    "reseed",
    "seed_of_name",
    "seeded",
    "seeds_from_noise",
    "torch_generator",
]


def _mix(x: Tensor) -> Tensor:
    """Finaliser of MurmurHash3: int64 in [0, 2^32) -> int64 in [0, 2^32), a bijection in which every bit matters."""
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & 0xFFFFFFFF
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & 0xFFFFFFFF
    return x ^ (x >> 16)


def seeds_from_noise(noise: Tensor) -> Tensor:
    """One seed per volume from its starting noise, read as fixed-point numbers with 20 binary places.

    Shape:
        noise: (B, ...) -> (B,) int64 in [0, 2^32)
    """
    numbers = (noise.detach().float().reshape(noise.shape[0], -1) * 1048576.0).long() & 0xFFFFFFFF
    place = _mix(torch.arange(numbers.shape[1], device=noise.device))
    return _mix(_mix(numbers ^ place).sum(1) & 0xFFFFFFFF)


def counter_bits(seeds: Tensor, count: int) -> Tensor:
    """Random whole numbers in [0, 2^32), (B, count) int64: row b follows from ``seeds[b]``, (B,) in [0, 2^32), alone."""
    return _mix(_mix(torch.arange(count, device=seeds.device))[None] ^ _mix(seeds)[:, None])


def counter_normal(seeds: Tensor, step: int, like: Tensor) -> Tensor:
    """Standard normal noise, (B, ...) as ``like``: row b follows from ``seeds[b]`` and ``step`` alone.

    Args:
        seeds: (B,) int64 in [0, 2^32).
        step: number of the draw.
        like: gives shape, dtype and device.
    """
    count = like.numel() // like.shape[0]
    stream = _mix(seeds ^ _mix(torch.full_like(seeds, step + 1)))[:, None]
    place = torch.arange(count, device=like.device)[None]
    first = _mix(_mix(place * 2 + 1) ^ stream)
    second = _mix(_mix(place * 2 + 2) ^ stream)
    # (n + 1/2) / 2^32 lies in (0, 1]: no logarithm of zero
    radius = torch.sqrt(-2.0 * torch.log((first.float() + 0.5) / 4294967296.0))
    angle = 2.0 * math.pi * (second.float() + 0.5) / 4294967296.0
    return (radius * torch.cos(angle)).to(like.dtype).reshape(like.shape)


def derive_seed(*parts: int) -> int:
    """One 32-bit seed from several integers, without the collisions of their sum."""
    return int(np.random.SeedSequence([int(part) for part in parts]).generate_state(1)[0])


def seed_of_name(name: str, size: int = 4) -> int:
    """The seed that belongs to a name, such as a case's: the first ``size`` bytes of its SHA-256, in [0, 256^size)."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:size], "big")


def numpy_generator(*parts: int) -> np.random.Generator:
    """A generator of NumPy's whose state follows from the integers, each at least 0, alone.

    Raises:
        ValueError: a negative integer.
    """
    return np.random.default_rng([int(part) for part in parts])


def torch_generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator of torch's whose state follows from ``seed`` alone; its numbers differ between kinds of device."""
    return torch.Generator(device).manual_seed(int(seed))


def normal_of_seed(seed: int, shape: Sequence[int]) -> Tensor:
    """Standard normal noise, float32 in ``shape``, that follows from ``seed`` alone; drawn on the CPU."""
    return torch.randn(tuple(shape), generator=torch_generator(seed))


def reseed(*parts: int) -> None:
    """Set torch's own generators, on all devices, to a state that follows from the integers alone."""
    torch.manual_seed(derive_seed(*parts))


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within the block torch's own generator of the CPU starts from ``seed``; afterwards it is where it was before.

    For code that knows no other generator. Those of GPUs are neither set nor used: to ask one for its state would make the
    host wait.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(seed))  # torch.manual_seed would reach the generators of GPUs, too
        yield


def draw_integers(high: int, batch: int, device: torch.device | str = "cpu") -> Tensor:
    """One random integer in [0, high) for each row of this process's batch, (B,) int64.

    Drawn on the CPU, so the same on all devices and with no device to wait for.

    Args:
        high: a bound that the integers stay below.
        batch: B, the same on every process.
        device: where they are wanted.
    """
    return torch.randint(high, (batch * world_size(),))[process_rank() :: world_size()].to(device, non_blocking=True)


def draw_normal(like: Tensor) -> Tensor:
    """Standard normal noise in shape, dtype and device of ``like``, (B, ...); each row from a seed of its own."""
    generator = torch_generator(0, like.device)
    rows = [
        torch.randn(like.shape[1:], generator=generator.manual_seed(seed), dtype=like.dtype, device=like.device)
        for seed in draw_integers(2**32, like.shape[0]).tolist()
    ]
    return torch.stack(rows)


def draw_stratified(high: int, batch: int, device: torch.device | str = "cpu") -> Tensor:
    """As :func:`draw_integers`, each still uniform in [0, high), but spread evenly over the global batch.

    Of the N rows of the global batch, each has a random integer from another N-th of the range (stratified sampling): the
    mean of the loss over a batch then varies less with what was drawn.
    """
    drawn = (_places(batch * world_size(), True) * high).long().clamp(max=high - 1)
    return drawn[process_rank() :: world_size()].to(device, non_blocking=True)


def draw_uniform(batch: int, stratified: bool, device: torch.device | str = "cpu") -> Tensor:
    """One uniform number in (0, 1) for each row of this process's batch, (B,) float64; drawn on the CPU.

    Args:
        batch: B, the same on every process.
        stratified: each from another equal part of (0, 1), as in :func:`draw_stratified`.
        device: where they are wanted.
    """
    drawn = _places(batch * world_size(), stratified).clamp(1e-12, 1 - 1e-12)
    return drawn[process_rank() :: world_size()].to(device, non_blocking=True)


def _places(rows: int, stratified: bool) -> Tensor:
    if not stratified:
        return torch.rand(rows, dtype=torch.float64)
    return (torch.randperm(rows).double() + torch.rand(rows, dtype=torch.float64)) / rows
