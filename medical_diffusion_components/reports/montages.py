"""Pictures of a running training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from matplotlib.figure import Figure
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from medical_diffusion_components.diffusion.noise_latent import NoiseLatent
from medical_diffusion_components.engine_state import running
from medical_diffusion_components.reports.drawing import montage, save_montage

__all__ = ["RECONSTRUCTION_ROWS", "ReconstructionMontage", "SampleMontage", "ValidationMontage", "VolumePictures"]

RECONSTRUCTION_ROWS = {"held-out volumes": "image", "their reconstructions": "pred"}


class VolumePictures:
    """Collects the entries ``rows`` of outputs that hold batches (B, C, H, W, D), and draws their first channels.

    Args:
        rows: heading -> key of the output, from top to bottom.
        num_volumes: how many to keep.
        spacing: mm per voxel.
        axcodes: where H, W and D point in the patient.
    """

    def __init__(
        self,
        rows: Mapping[str, str],
        num_volumes: int = 6,
        spacing: Sequence[float] = (1.0, 1.0, 1.0),
        axcodes: str = "RAS",
    ) -> None:
        self.rows = dict(rows)
        self.num_volumes = num_volumes
        self.spacing = list(spacing)
        self.axcodes = axcodes
        self.clear()

    def clear(self) -> None:
        """Forget what was collected."""
        self.volumes: dict[str, list[np.ndarray]] = {heading: [] for heading in self.rows}

    def collect(self, output: Any) -> None:
        """Keep volumes of a batch, as long as there is room."""
        for key, collected in zip(self.rows.values(), self.volumes.values()):
            room = max(self.num_volumes - len(collected), 0)
            collected += [volume[0].float().cpu().numpy() for volume in output[key][:room]]

    def figure(self, title: str = "") -> Figure:
        """The montage of what was collected."""
        return montage(self.volumes, self.spacing, title=title, axcodes=self.axcodes)


class ValidationMontage:
    """Attached to an evaluator, draw what ``pictures`` collects after every validation.

    Args:
        name: of the files, of the picture in TensorBoard and in the title.
        pictures: collects and draws.
        folder: where the PNG goes, one per epoch.
        writer: TensorBoard writer that receives it, too.
    """

    def __init__(self, name: str, pictures: VolumePictures, folder: str | Path, writer: SummaryWriter) -> None:
        self.name = name
        self.pictures = pictures
        self.folder = Path(folder)
        self.writer = writer

    def attach(self, evaluator: Engine) -> None:
        evaluator.add_event_handler(Events.EPOCH_STARTED, self.pictures.clear)
        evaluator.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        evaluator.add_event_handler(Events.EPOCH_COMPLETED, self._draw)

    def _collect(self, evaluator: Engine) -> None:
        self.pictures.collect(running(evaluator).output)

    def _draw(self, evaluator: Engine) -> None:
        state = running(evaluator)
        if state.rank == 0:
            epoch = state.epoch
            figure = self.pictures.figure(f"{self.name}, epoch {epoch}")
            save_montage(figure, self.folder / f"{self.name}_{epoch:05d}.png")
            self.writer.add_figure(self.name, figure, epoch)


class ReconstructionMontage(ValidationMontage):
    """Attached to an evaluator, draw held-out volumes above their reconstructions after every validation.

    Args:
        folder: where the PNG goes, one per epoch.
        writer: TensorBoard writer that receives it, too.
        rows: heading -> key of ``evaluator.state.output``, from top to bottom.
        shown: ``num_volumes`` (6), ``spacing`` in mm and ``axcodes`` of :class:`VolumePictures`.
    """

    def __init__(
        self,
        folder: str | Path,
        writer: SummaryWriter,
        rows: Mapping[str, str] = RECONSTRUCTION_ROWS,
        **shown: Any,
    ) -> None:
        super().__init__("reconstruction", VolumePictures(rows, **shown), folder, writer)


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

    name = "samples"  # of the files and of TensorBoard's pictures

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
        state = running(engine)
        epoch = state.epoch
        if state.rank > 0 or (epoch % self.every_epochs and epoch != state.max_epochs):
            return
        rows, overlays = self.draw(state.device)
        figure = montage(
            rows, self.spacing, title=f"{self.name}, epoch {epoch}", axcodes=self.axcodes, overlays=overlays
        )
        save_montage(figure, self.folder / f"{self.name}_{epoch:05d}.png")
        self.writer.add_figure(self.name, figure, epoch)

    def draw(
        self, device: torch.device | str
    ) -> tuple[dict[str, list[np.ndarray]], dict[str, list[np.ndarray]] | None]:
        """Headings with their volumes (H, W, D), and label maps to draw over those of some headings."""
        return {"synthetic volumes": sampled(self.generator, self.noise, self.num_volumes, device)}, None


@torch.no_grad()
def sampled(generator: nn.Module, noise: NoiseLatent, num_volumes: int, device: torch.device | str) -> list[np.ndarray]:
    """The first volumes that a generator makes of a seed's noise, (H, W, D) each."""
    generator.eval()
    noises = (noise(number)[None].to(device) for number in range(num_volumes))
    return [generator(one)[0, 0].cpu().numpy() for one in noises]
