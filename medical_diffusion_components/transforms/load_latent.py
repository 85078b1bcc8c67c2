"""Read a cached latent: one of its views, plain or mirrored."""

from __future__ import annotations

import numpy as np
import torch
from monai.transforms import RandomizableTransform
from torch import Tensor

from medical_diffusion_components.transforms.each_volume import RandEachVolumed

__all__ = ["RandLoadLatent", "RandLoadLatentd"]


class RandLoadLatent(RandomizableTransform):
    """Read the latents of a case (see ``cache_latents``), choose a view, and mirror it with probability ``flip_prob``.

    All views are chosen equally often.

    Args:
        flip_prob: probability of the mirrored latent, in [0, 1]; 0 for validation.

    Shape:
        file of (2 views, C, h, w, d) -> (C, h, w, d)

    Raises:
        ValueError: a probability outside [0, 1]; when called, a file that is damaged or holds no pairs of latents.
    """

    def __init__(self, flip_prob: float = 0.5) -> None:
        if not 0 <= flip_prob <= 1:  # MONAI would clamp it
            raise ValueError(f"flip_prob must be in [0, 1], got {flip_prob}")
        super().__init__(prob=flip_prob)

    def __call__(self, filename: str) -> Tensor:
        self.randomize(None)
        try:
            pairs = np.load(filename, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ValueError(f"{filename} is no cached latent ({error}): delete it, and it is made again") from error
        if pairs.ndim != 5 or pairs.shape[0] == 0 or pairs.shape[0] % 2:
            raise ValueError(f"{filename}: expected pairs of latents (2 views, C, h, w, d), got shape {pairs.shape}")
        views = pairs.shape[0] // 2
        view = int(self.R.randint(views)) if views > 1 else 0
        return torch.from_numpy(np.array(pairs[2 * view + int(self._do_transform)]))


class RandLoadLatentd(RandEachVolumed):
    """Dictionary form of :class:`RandLoadLatent`: ``keys`` hold file names, ``flip_prob`` is as there."""

    array_form = RandLoadLatent
