"""The nearest code of every latent vector, exactly, without a matrix of all distances.

A k-d tree on the codes finds them on a CPU; elsewhere, and in TorchScript, blocks of rows are compared with all codes.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

from medical_diffusion_components.networks import fast

__all__ = ["nearest_by_products", "nearest_by_tree", "nearest_codes"]

# Above this many channels a k-d tree visits so much of itself that blocks of products are faster.
TREE_MAX_DIM = 10
_HAS_TREES = find_spec("scipy") is not None  # MONAI does without it; products find the same codes


def nearest_codes(latents: Tensor, codes: Tensor, chunk_size: int) -> Tensor:
    """Indices of the codes at the least Euclidean distance, compared in float64.

    Args:
        latents: float32 vectors.
        codes: what they are compared with.
        chunk_size: rows per block of distances where no tree is used.

    Shape:
        ``(N, C)`` and ``(K, C)`` -> ``(N,)``, int64

    Raises:
        ValueError: on a CPU, latents or codes that are not finite.
    """
    if not torch.jit.is_scripting():  # noqa: SIM102 (TorchScript drops this branch only if the call stands alone)
        if latents.device.type == "cpu":
            return _checked_nearest(latents, codes, chunk_size)
    return nearest_by_products(latents, codes, chunk_size)


@torch.jit.unused
def _checked_nearest(latents: Tensor, codes: Tensor, chunk_size: int) -> Tensor:
    for name, vectors in (("latents", latents), ("codes", codes)):
        finite = torch.isfinite(vectors)
        if not finite.all():
            raise ValueError(f"expected finite {name}, got {int((~finite).sum())} of {finite.numel()} nan or infinite")
    if _HAS_TREES and fast.in_use() and latents.shape[1] <= TREE_MAX_DIM:
        return nearest_by_tree(latents, codes)
    return nearest_by_products(latents, codes, chunk_size)


def nearest_by_products(latents: Tensor, codes: Tensor, chunk_size: int) -> Tensor:
    """Nearest codes as the least ``|c|^2 / 2 - z c``, block by block.

    That difference of large numbers cancels badly in float32 and worse in TF32; float64 about the codes' mean
    keeps the order of all distances that float32 latents can tell apart, and no autocast touches float64.

    Shape:
        - latents: ``(N, C)``; codes: ``(K, C)``
        - output: ``(N,)``, int64
    """
    centre = codes.double().mean(dim=0)
    centred = (codes.double() - centre).t().contiguous()  # (C, K)
    half_norms = centred.square().sum(dim=0) / 2  # (K,)
    nearest = torch.empty(latents.shape[0], dtype=torch.int64, device=latents.device)
    for start in range(0, latents.shape[0], chunk_size):
        block = latents[start : start + chunk_size].double() - centre
        scores = torch.addmm(half_norms, block, centred, alpha=-1.0)  # (chunk, K)
        nearest[start : start + chunk_size] = scores.argmin(dim=1)
    return nearest


def nearest_by_tree(latents: Tensor, codes: Tensor) -> Tensor:
    """Nearest codes by a k-d tree, built at every call because the codes move at every step (6 ms for 16,384 x 8).

    Exact, in float64 differences. Many times faster than products where the codes lie among the latents; with
    all codes in one place it visits them all and takes about as long as products.

    Shape:
        - latents: ``(N, C)``; codes: ``(K, C)``, both finite and on a CPU
        - output: ``(N,)``, int64
    """
    from scipy.spatial import cKDTree

    tree = cKDTree(codes.double().numpy())
    _, nearest = tree.query(latents.double().numpy(), workers=torch.get_num_threads())
    return torch.from_numpy(nearest).long()
