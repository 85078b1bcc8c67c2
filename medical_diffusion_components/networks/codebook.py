"""Vector quantisation with a codebook learned by exponential moving averages (EMA).

Every latent vector is replaced by the nearest of K codes; the codes follow the running mean of the latents
assigned to them: van den Oord et al., "Neural Discrete Representation Learning", NeurIPS 2017, section 3 and
appendix A.1. Initialisation from data and the restart of unused codes follow Dhariwal et al., "Jukebox: A
Generative Model for Music", 2020.

One example of shapes: latents ``(2, 8, 16, 16, 16)`` are N = 2 * 16^3 = 8192 vectors of 8 channels. With K =
16,384 codes a whole distance matrix would hold 134 million numbers, so none is ever made (``nearest_codes.py``),
and the running sums come from scatter-adds, not from products with a one-hot matrix.
"""

# No `from __future__ import annotations`: TorchScript reads the class's annotations and needs types, not text.

import math
from collections.abc import Callable
from typing import NamedTuple, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from medical_diffusion_components.chance import counter_bits, counter_normal, draw_integers
from medical_diffusion_components.distributed import process_rank, world_size
from medical_diffusion_components.networks.nearest_codes import nearest_codes

__all__ = ["CodebookOutput", "EMACodebook"]

# A code with a smaller running count stays where it is: its mean would be 0 / 0 in the end.
NEGLIGIBLE_COUNT = 1e-5
# Latents that are drawn twice get noise of this many standard deviations of the latents, so that no two codes are equal.
JITTER = 0.01
# Marks places that no latent has taken; larger than any key.
NO_KEY = 2**62


class CodebookOutput(NamedTuple):
    """What :class:`EMACodebook` returns.

    Attributes:
        quantised: the nearest codes, ``(B, C, H, W, D)``, in the dtype and memory format of the input; the
            gradient passes straight through to the input.
        indices: which codes, ``(B, H, W, D)``, int64. In training they refer to the codes as they were found,
            before this call's update.
        commitment_loss: ``commitment_weight * mean((z - sg(quantised))^2)`` of this process's batch, float32.
        perplexity: exp(entropy) of the use of the codes, float32, 1 (one code) to K (all codes equally often). In
            training it is that of the batch over all processes; in evaluation that of this process's batch.
        used_codes: number of distinct codes in use, int64; over the same batch as ``perplexity``.
        restarted_codes: number of codes restarted by this call, int64; 0 in evaluation and in the
            initialising call.
    """

    quantised: Tensor
    indices: Tensor
    commitment_loss: Tensor
    perplexity: Tensor
    used_codes: Tensor
    restarted_codes: Tensor


class EMACodebook(nn.Module):
    """Codebook with EMA updates, initialisation from data, and restarts of unused codes.

    *Initialisation.* The first training batch gives the codes: a random draw of its latents without
    replacement. Only when it has fewer than K latents are they repeated, the repetitions with noise of 1 % of
    a standard deviation per channel. The flag ``initialised`` is part of the state, so a reloaded codebook
    keeps its codes.

    *Update.* With n_k latents of sum s_k assigned to code k: ``ema_counts`` and ``ema_sums`` move towards n_k
    and s_k by ``1 - decay``, and ``code = ema_sums / ema_counts``. There is no Laplace smoothing: count and
    sum of an unused code shrink by the same factor, so the code stays where it is (once its count is negligible,
    the division is left out).

    *Restarts.* A code whose running count (its mean number of latents per batch) falls below
    ``restart_threshold`` moves to a random latent of the batch. Its count becomes twice the threshold and its
    sum follows, so no stale sum pulls it back, and it has 69 batches (log 2 / -log decay) to find users
    before it restarts again. Where batches have fewer latents than there are codes, the mean count is below 1
    and most codes cannot stay: then at most about K / 69 of them restart per batch, and the codebook is a
    reservoir of recent latents around a well-used core. With the threshold itself as the new count, one batch
    without users would restart a code, so nearly all K would restart in every batch; on latents from a slowly
    moving curved surface (K = 4096, N = 256) that tripled the quantisation error. Initial counts are spread
    between the threshold and its double for a similar reason: codes with equal counts would restart all at once.

    *Several processes.* Counts, sums and the drawn latents are exchanged, so that every process makes the
    update of the whole batch, whatever its share of it. The draws agree, too, if all processes have the same random
    state and number of volumes. Training calls are collective: all processes must make the same number of them.

    *Precision.* Codes and sums are float32, under autocast and after ``.half()``, too; distances are float64.
    Latents that are not finite raise on a CPU. On other devices, where a check would make the host wait, they
    leave the codebook as it is and surface in the loss; TorchScript does not check either.

    A training call changes the codes, so do not put it into activation checkpointing, which repeats the call.

    Args:
        num_codes: K, number of codes.
        dim: C, channels of a latent vector.
        decay: of the running count and sum, in [0, 1).
        commitment_weight: weight of the commitment loss, >= 0.
        restart_threshold: latents per batch, >= 0; 0 switches restarts off.
        chunk_size: rows per block of distances where no tree is used; a block has
            ``chunk_size * num_codes`` float64.

    Shape:
        - input: ``(B, C, H, W, D)`` with C = ``dim``
        - output: :class:`CodebookOutput`

    Raises:
        ValueError: for an argument out of its range, an input that is not ``(B, dim, H, W, D)`` or is empty,
            and, on a CPU, latents that are not finite.
    """

    codes: Tensor
    ema_counts: Tensor
    ema_sums: Tensor
    initialised: Tensor

    def __init__(
        self,
        num_codes: int = 16384,
        dim: int = 8,
        decay: float = 0.99,
        commitment_weight: float = 0.25,
        restart_threshold: float = 1.0,
        chunk_size: int = 512,
    ) -> None:
        super().__init__()
        for name, number in (("num_codes", num_codes), ("dim", dim), ("chunk_size", chunk_size)):
            if number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}")
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        for name, weight in (
            ("commitment_weight", commitment_weight),
            ("restart_threshold", restart_threshold),
        ):
            if not 0 <= weight < math.inf:
                raise ValueError(f"{name} must be finite and not negative, got {weight}")
        self.num_codes = num_codes
        self.dim = dim
        self.decay = decay
        self.commitment_weight = commitment_weight
        self.restart_threshold = restart_threshold
        self.chunk_size = chunk_size
        self.fresh_count = 2 * restart_threshold if restart_threshold > 0 else 1.0
        codes = torch.randn(num_codes, dim)
        self.register_buffer("codes", codes)  # (K, C)
        self.register_buffer("ema_counts", torch.full((num_codes,), self.fresh_count))  # (K,)
        self.register_buffer("ema_sums", codes * self.fresh_count)  # (K, C)
        self.register_buffer("initialised", torch.tensor(False))

    @torch.jit.unused
    def forward(self, z: Tensor) -> CodebookOutput:
        """Quantise ``z``; in training mode also initialise, update and restart the codes."""
        with torch.autocast(z.device.type, enabled=False):
            nearest, indices, counts, restarted = self._assign(z.detach())
            loss = self.commitment_weight * F.mse_loss(z.float(), nearest)
            share = counts / counts.sum()
            perplexity = torch.exp(torch.special.entr(share).sum())
        # z - z.detach() is an exact zero: the codes to the bit, with the gradient and memory format of z.
        quantised = (z - z.detach()) + nearest.to(z.dtype)
        return CodebookOutput(quantised, indices, loss, perplexity, (counts > 0).sum(), restarted)

    @torch.jit.unused
    @torch.no_grad()
    def _assign(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Codes ``(B, C, H, W, D)``, indices ``(B, H, W, D)``, use of each code ``(K,)``, restarts."""
        latents = self._rows(z)  # (N, C)
        restarted = torch.zeros((), dtype=torch.int64, device=z.device)
        may_restart = self.initialised.clone()
        if self.training:
            candidates = self._draw_candidates(latents, volumes=z.shape[0])  # (K, C)
            self._initialise(candidates)
        rows = self._nearest_rows(latents)  # (N,)
        indices = rows.view(z.shape[0], z.shape[2], z.shape[3], z.shape[4])
        nearest = self.embed(indices)  # a copy: the update below does not reach it
        counts, sums = self._sums_per_code(latents, rows)  # (K,), (K, C)
        if self.training:
            restarted = self._update(counts, sums, candidates, may_restart)
        return nearest, indices, counts, restarted

    @torch.jit.export
    def nearest(self, z: Tensor) -> Tensor:
        """Indices of the codes at the least Euclidean distance.

        Distances are compared in float64. Between codes at exactly the same distance (duplicates) the lowest
        index wins in blocks; the k-d tree takes one of them, the same one each time.

        Shape:
            - input: ``(B, C, H, W, D)``
            - output: ``(B, H, W, D)``, int64
        """
        rows = self._nearest_rows(self._rows(z.detach()))
        return rows.view(z.shape[0], z.shape[2], z.shape[3], z.shape[4])

    @torch.jit.export
    def quantise(self, z: Tensor) -> Tensor:
        """The nearest codes in the dtype and memory format of ``z``, without gradient and without change of state.

        Shape:
            - input and output: ``(B, C, H, W, D)``
        """
        return torch.empty_like(z).copy_(self.embed(self.nearest(z)))

    @torch.jit.export
    def embed(self, indices: Tensor) -> Tensor:
        """Codes of the given indices, float32.

        Shape:
            - input: ``(B, H, W, D)``, integers in [0, K)
            - output: ``(B, C, H, W, D)``
        """
        if indices.dim() != 4:
            raise ValueError(f"expected indices (B, H, W, D), got shape {list(indices.shape)}")
        return F.embedding(indices, self.codes).permute(0, 4, 1, 2, 3).contiguous()

    @torch.jit.export
    def value_range(self) -> tuple[Tensor, Tensor]:
        """Least and greatest number in the codebook (scalars): what latents are scaled by."""
        return self.codes.min(), self.codes.max()

    def _rows(self, z: Tensor) -> Tensor:
        """``(B, C, H, W, D)`` to float32 ``(N, C)``, checked."""
        if z.dim() != 5 or z.shape[1] != self.dim or z.numel() == 0:
            raise ValueError(f"expected non-empty latents (B, {self.dim}, H, W, D), got shape {list(z.shape)}")
        return z.permute(0, 2, 3, 4, 1).reshape(-1, self.dim).float()

    def _nearest_rows(self, latents: Tensor) -> Tensor:
        return nearest_codes(latents, self.codes, self.chunk_size)

    def _draw_candidates(self, latents: Tensor, volumes: int = 1) -> Tensor:
        """K random latents ``(K, C)`` of the batch over all processes, equal on every process.

        They are those with the least random keys, so each process offers K at most and unequal shares need no
        agreement. A key follows from the volume's seed and the place in it: the draw does not depend on how the
        volumes are shared. Where there are fewer than K latents, they are repeated.
        """
        keys = _random_keys(latents.shape[0], volumes, latents.device)  # (N,)
        keys, order = keys.topk(min(self.num_codes, keys.shape[0]), largest=False)
        lacking = self.num_codes - keys.shape[0]
        # Adds zero, or nan where any latent is not finite: then no process uses the batch.
        drawn = F.pad(latents[order] + (latents * 0).sum(), (0, 0, 0, lacking))  # (K, C)
        keys = F.pad(keys, (0, lacking), value=NO_KEY)  # (K,)
        if world_size() > 1:
            keys, order = _gathered(keys).topk(self.num_codes, largest=False)
            drawn = _gathered(drawn)
            drawn = drawn[order] + (drawn * 0).sum()
        return self._repeated(drawn, keys) if lacking else drawn

    def _repeated(self, drawn: Tensor, keys: Tensor) -> Tensor:
        """``drawn``, ``(K, C)``, whose places without a key repeat those before them, with a little noise."""
        places = torch.arange(self.num_codes, device=keys.device)
        found = (keys != NO_KEY)[:, None]  # (K, 1)
        total = found.sum()
        mean = (drawn * found).sum(0) / total
        deviation = (((drawn - mean) * found).square().sum(0) / total).sqrt()
        source = places % total
        # noise from the keys, which are the same on every process, whatever its random state
        noise = counter_normal(((keys[source] >> 32) + places) & 0xFFFFFFFF, 0, drawn) * deviation
        return torch.where(found, drawn, drawn[source] + JITTER * noise)

    def _initialise(self, candidates: Tensor) -> None:
        # Chosen by a tensor, not by `if`: reading the flag would make the host wait for a GPU at every step.
        usable = candidates.isfinite().all()
        keep = self.initialised | ~usable
        self.codes.copy_(torch.where(keep, self.codes, candidates))
        # Repeated draws come last and have the least counts, so they are the first to make way.
        halvings = torch.linspace(0, 1, self.num_codes + 1, device=candidates.device)[:-1]
        counts = self.fresh_count * torch.exp2(-halvings)  # (K,)
        self.ema_counts.copy_(torch.where(keep, self.ema_counts, counts))
        self.ema_sums.copy_(torch.where(keep, self.ema_sums, candidates * counts[:, None]))
        self.initialised.logical_or_(usable)

    def _sums_per_code(self, latents: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Number ``(K,)`` and sum ``(K, C)`` of each code's latents; over all processes in training."""
        if rows.device.type == "cpu":
            counts = torch.bincount(rows, minlength=self.num_codes).float()
        else:  # bincount reads its maximum, for which the host waits
            counts = torch.zeros_like(self.ema_counts).index_add_(0, rows, torch.ones_like(latents[:, 0]))
        sums = torch.zeros_like(self.ema_sums).index_add_(0, rows, latents)
        if self.training and world_size() > 1:
            dist.all_reduce(counts)
            dist.all_reduce(sums)
        return counts, sums

    def _update(self, counts: Tensor, sums: Tensor, candidates: Tensor, may_restart: Tensor) -> Tensor:
        """EMA step and restarts; the number of restarted codes."""
        ema_counts = self.ema_counts.lerp(counts, 1 - self.decay)
        ema_sums = self.ema_sums.lerp(sums, 1 - self.decay)
        means = ema_sums / ema_counts.clamp(min=NEGLIGIBLE_COUNT)[:, None]
        codes = torch.where((ema_counts > NEGLIGIBLE_COUNT)[:, None], means, self.codes)

        stale = (ema_counts < self.restart_threshold) & may_restart
        # The i-th stale code takes the i-th draw, so repeated draws come last.
        fresh = candidates[(stale.cumsum(0) - 1).clamp(min=0)]
        codes = torch.where(stale[:, None], fresh, codes)
        ema_counts = torch.where(stale, self.fresh_count, ema_counts)
        ema_sums = torch.where(stale[:, None], fresh * self.fresh_count, ema_sums)

        usable = candidates.isfinite().all()
        self.codes.copy_(torch.where(usable, codes, self.codes))
        self.ema_counts.copy_(torch.where(usable, ema_counts, self.ema_counts))
        self.ema_sums.copy_(torch.where(usable, ema_sums, self.ema_sums))
        return (stale & usable).sum()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move between devices as any module does, but stay float32 when the network around is cast."""

        def without_cast(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(without_cast, recurse)


def _random_keys(rows: int, volumes: int, device: torch.device) -> Tensor:
    """Distinct random keys in [0, 2^62) for the latents of the volumes of this process, ``(N,)`` int64."""
    places = rows // volumes
    bits = counter_bits(draw_integers(2**32, volumes, device), places)  # (volumes, places)
    positions = torch.arange(volumes, device=device) * world_size() + process_rank()  # in the global batch
    within = torch.arange(places, device=device)
    return ((bits >> 2 << 32) | (positions[:, None] * places + within)).flatten()  # (N,)


def _gathered(tensor: Tensor) -> Tensor:
    """``(K, ...)`` of every process, one after the other."""
    shares = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(shares, tensor)
    return torch.cat(shares)
