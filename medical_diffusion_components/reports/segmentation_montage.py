"""Pictures of segmentations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from ignite.engine import Engine, Events
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from medical_diffusion_components.reports.drawing import montage, save_montage

__all__ = ["SegmentationMontage", "SegmentationPictures"]

HEADINGS = ("held-out volumes", "predicted classes", "drawn classes")


class SegmentationPictures:
    """Collects volumes, predictions and labels from an evaluator's output and draws them below one another.

    Args:
        num_volumes: how many to keep.
        spacing: mm per voxel.
        axcodes: where H, W and D point in the patient.
        image_key: entry of the output with the volume.
    """

    def __init__(
        self, num_volumes: int, spacing: Sequence[float], axcodes: str = "RAS", image_key: str = "image"
    ) -> None:
        self.image_key = image_key
        self.num_volumes = num_volumes
        self.spacing = list(spacing)
        self.axcodes = axcodes
        self.clear()

    def clear(self) -> None:
        """Forget what was collected."""
        self.images: list[np.ndarray] = []
        self.predicted: list[np.ndarray] = []
        self.drawn: list[np.ndarray] = []

    def collect(self, output: Sequence[Mapping[str, torch.Tensor]]) -> None:
        """Keep cases of a batch: the volume (1, H, W, D), ``pred`` and ``label`` one-hot (C, H, W, D)."""
        for case in output[: max(self.num_volumes - len(self.images), 0)]:
            self.images.append(_array(case[self.image_key])[0])
            self.predicted.append(_array(case["pred"]).argmax(0))
            self.drawn.append(_array(case["label"]).argmax(0))

    def figure(self, title: str = "") -> Figure:
        """The montage of what was collected."""
        groups = dict.fromkeys(HEADINGS, self.images)
        overlays = dict(zip(HEADINGS[1:], (self.predicted, self.drawn)))
        return montage(groups, self.spacing, title=title, axcodes=self.axcodes, overlays=overlays)


class SegmentationMontage:
    """Attached to an evaluator, draw held-out volumes with predicted and drawn classes after every validation.

    Args:
        folder: where the PNG goes, one per epoch.
        writer: TensorBoard writer that receives it, too.
        num_volumes: how many volumes to show.
        spacing: mm per voxel.
        axcodes: where H, W and D point in the patient.
    """

    def __init__(
        self,
        folder: str | Path,
        writer: SummaryWriter,
        num_volumes: int = 6,
        spacing: Sequence[float] = (1.0, 1.0, 1.0),
        axcodes: str = "RAS",
    ) -> None:
        self.folder = Path(folder)
        self.writer = writer
        self.pictures = SegmentationPictures(num_volumes, spacing, axcodes)

    def attach(self, evaluator: Engine) -> None:
        evaluator.add_event_handler(Events.EPOCH_STARTED, self.pictures.clear)
        evaluator.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        evaluator.add_event_handler(Events.EPOCH_COMPLETED, self._draw)

    def _collect(self, evaluator: Engine) -> None:
        self.pictures.collect(evaluator.state.output)

    def _draw(self, evaluator: Engine) -> None:
        if evaluator.state.rank == 0:
            epoch = evaluator.state.epoch
            figure = self.pictures.figure(f"segmentation, epoch {epoch}")
            save_montage(figure, self.folder / f"segmentation_{epoch:05d}.png")
            self.writer.add_figure("segmentation", figure, epoch)


def _array(volume: torch.Tensor) -> np.ndarray:
    return np.asarray(volume.detach().float().cpu())
