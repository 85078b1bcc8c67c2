"""Pictures of a control branch in training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from torch.utils.tensorboard import SummaryWriter

from medical_diffusion_components.control.branch import ControlledDenoiser
from medical_diffusion_components.control.sampling import draw_controlled
from medical_diffusion_components.diffusion.generator import LatentDiffusionGenerator
from medical_diffusion_components.diffusion.noise_latent import NoiseLatent
from medical_diffusion_components.engine_state import running
from medical_diffusion_components.reports.drawing import montage, save_montage

__all__ = ["ControlMontage"]


class ControlMontage:
    """Every so many epochs, draw what the generator makes of held-out masks, with and without the masks on top.

    Args:
        generator: of volumes.
        controlled: its denoiser with the branch.
        pairs: held-out entries with ``mask``, as :func:`cache_masks` lists them.
        transform: entry -> dictionary with ``mask`` (M, H, W, D).
        latent_shape: (C, h, w, d).
        folder: where the PNG goes.
        writer: TensorBoard writer that receives it, too.
        every_epochs: epochs between two montages; the last epoch always makes one.
        num_volumes: how many volumes.
        seed: seed of the first.
        spacing: mm per voxel.
        axcodes: where H, W and D point in the patient.
    """

    def __init__(
        self,
        generator: LatentDiffusionGenerator,
        controlled: ControlledDenoiser,
        pairs: Sequence[dict],
        transform: Callable[[dict], dict],
        latent_shape: Sequence[int],
        folder: str | Path,
        writer: SummaryWriter,
        every_epochs: int = 10,
        num_volumes: int = 4,
        seed: int = 0,
        spacing: Sequence[float] = (1.0, 1.0, 1.0),
        axcodes: str = "RAS",
    ) -> None:
        self.generator = generator
        self.controlled = controlled
        self.pairs = list(pairs[:num_volumes])
        self.transform = transform
        self.noise = NoiseLatent(latent_shape, seed)
        self.folder = Path(folder)
        self.writer: Any = writer
        self.every_epochs = every_epochs
        self.spacing = spacing
        self.axcodes = axcodes

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    @torch.no_grad()
    def __call__(self, engine: Engine) -> None:
        state = running(engine)
        epoch = state.epoch
        if state.rank > 0 or (epoch % self.every_epochs and epoch != state.max_epochs):
            return
        self.controlled.eval()
        volumes, masks = [], []
        for number, pair in enumerate(self.pairs):
            mask = self.transform(pair)["mask"][None].to(state.device)
            noise = self.noise(number)[None].to(state.device)
            volume = draw_controlled(self.generator, self.controlled, noise, mask)
            volumes.append(volume[0, 0].cpu().numpy())
            masks.append(np.load(pair["mask"], allow_pickle=False))
        rows = {"synthetic volumes": volumes, "with the masks that were asked for": volumes}
        overlays = {"with the masks that were asked for": masks}
        figure = montage(rows, self.spacing, title=f"epoch {epoch}", axcodes=self.axcodes, overlays=overlays)
        save_montage(figure, self.folder / f"control_{epoch:05d}.png")
        self.writer.add_figure("control", figure, epoch)
