"""Pictures of a control branch in training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from medical_diffusion_components.control.branch import ControlledDenoiser
from medical_diffusion_components.control.sampling import draw_controlled
from medical_diffusion_components.diffusion.generator import LatentDiffusionGenerator
from medical_diffusion_components.reports.montages import SampleMontage

__all__ = ["ControlMontage"]

ASKED = "with the masks that were asked for"


class ControlMontage(SampleMontage):
    """Every so many epochs, draw what the generator makes of held-out masks, with and without the masks on top.

    Args:
        generator: of volumes.
        controlled: its denoiser with the branch.
        pairs: held-out entries with ``mask``, as :func:`cache_masks` lists them; the first ``num_volumes`` are drawn.
        transform: entry -> dictionary with ``mask`` (M, H, W, D).
        settings: the other arguments of :class:`~medical_diffusion_components.reports.SampleMontage`.
    """

    name = "control"
    generator: LatentDiffusionGenerator

    def __init__(
        self,
        generator: LatentDiffusionGenerator,
        controlled: ControlledDenoiser,
        pairs: Sequence[dict],
        transform: Callable[[dict], dict],
        **settings: Any,
    ) -> None:
        super().__init__(generator, **settings)
        self.controlled = controlled
        self.pairs = list(pairs[: self.num_volumes])
        self.transform = transform

    def draw(
        self, device: torch.device | str
    ) -> tuple[dict[str, list[np.ndarray]], dict[str, list[np.ndarray]] | None]:
        self.controlled.eval()
        volumes, masks = [], []
        for number, pair in enumerate(self.pairs):
            mask = self.transform(pair)["mask"][None].to(device)
            noise = self.noise(number)[None].to(device)
            volume = draw_controlled(self.generator, self.controlled, noise, mask)
            volumes.append(volume[0, 0].cpu().numpy())
            masks.append(np.load(pair["mask"], allow_pickle=False))
        return {"synthetic volumes": volumes, ASKED: volumes}, {ASKED: masks}
