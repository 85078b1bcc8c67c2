"""Pictures of a running training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from ignite.engine import Engine, Events
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from medical_diffusion_components.diffusion.noise_latent import NoiseLatent
from medical_diffusion_components.reports.drawing import montage, save_montage

__all__ = ["RECONSTRUCTION_ROWS", "ReconstructionMontage", "SampleMontage"]

RECONSTRUCTION_ROWS = {"held-out volumes": "image", "their reconstructions": "pred"}


class ReconstructionMontage:
    """Attached to an evaluator, draw held-out volumes above their reconstructions after every validation.

    Args:
        folder: where the PNG goes, one per epoch.
        writer: TensorBoard writer that receives it, too.
        num_volumes: how many volumes to show.
        spacing: mm per voxel.
        axcodes: where H, W and D point in the patient.
        rows: heading -> key of ``evaluator.state.output``, from top to bottom.
    """

    def __init__(
        self,
        folder: str | Path,
        writer: SummaryWriter,
        num_volumes: int = 6,
        spacing: Sequence[float] = (1.0, 1.0, 1.0),
        axcodes: str = "RAS",
        rows: Mapping[str, str] = RECONSTRUCTION_ROWS,
    ) -> None:
        self.folder = Path(folder)
        self.writer = writer
        self.num_volumes = num_volumes
        self.spacing = spacing
        self.axcodes = axcodes
        self.rows = dict(rows)
        self.volumes: dict[str, list] = {}

    def attach(self, evaluator: Engine) -> None:
        evaluator.add_event_handler(Events.EPOCH_STARTED, self._reset)
        evaluator.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        evaluator.add_event_handler(Events.EPOCH_COMPLETED, self._draw)

    def _reset(self, evaluator: Engine) -> None:
        self.volumes = {heading: [] for heading in self.rows}

    def _collect(self, evaluator: Engine) -> None:
        output = evaluator.state.output
        for key, collected in zip(self.rows.values(), self.volumes.values()):
            room = self.num_volumes - len(collected)
            collected += [volume[0].float().cpu().numpy() for volume in output[key][: max(room, 0)]]

    def _draw(self, evaluator: Engine) -> None:
        if evaluator.state.rank == 0:
            epoch = evaluator.state.epoch
            figure = montage(self.volumes, self.spacing, title=f"reconstruction, epoch {epoch}", axcodes=self.axcodes)
            save_montage(figure, self.folder / f"reconstruction_{epoch:05d}.png")
            self.writer.add_figure("reconstruction", figure, epoch)


class SampleMontage:
    """Every so many epochs, synthesise volumes from the same starting noise and draw them.

    Args:
        generator: noise latent -> volume.
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
        generator: nn.Module,
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
        self.noise = NoiseLatent(latent_shape, seed)
        self.folder = Path(folder)
        self.writer = writer
        self.every_epochs = every_epochs
        self.num_volumes = num_volumes
        self.spacing = spacing
        self.axcodes = axcodes

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    @torch.no_grad()
    def __call__(self, engine: Engine) -> None:
        epoch, last = engine.state.epoch, engine.state.max_epochs
        if engine.state.rank > 0 or (epoch % self.every_epochs and epoch != last):
            return
        self.generator.eval()
        samples = [self.generator(self.noise(n)[None].to(engine.state.device)) for n in range(self.num_volumes)]
        volumes = [sample[0, 0].cpu().numpy() for sample in samples]
        title = f"samples, epoch {epoch}"
        figure = montage({"synthetic volumes": volumes}, self.spacing, title=title, axcodes=self.axcodes)
        save_montage(figure, self.folder / f"samples_{epoch:05d}.png")
        self.writer.add_figure("samples", figure, epoch)
