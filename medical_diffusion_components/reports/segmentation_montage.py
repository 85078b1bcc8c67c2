"""Pictures of segmentations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from medical_diffusion_components.reports.drawing import montage
from medical_diffusion_components.reports.montages import ValidationMontage, VolumePictures

__all__ = ["SegmentationMontage", "SegmentationPictures"]

HEADINGS = ("held-out volumes", "predicted classes", "drawn classes")


class SegmentationPictures(VolumePictures):
    """Collects volumes, predictions and labels from an evaluator's output and draws them below one another.

    Args:
        image_key: entry of the output with the volume.
        shown: ``num_volumes``, ``spacing`` and ``axcodes`` of :class:`VolumePictures`.
    """

    def __init__(self, image_key: str = "image", **shown: Any) -> None:
        super().__init__(dict(zip(HEADINGS, (image_key, "pred", "label"))), **shown)

    def collect(self, output: Sequence[Mapping[str, torch.Tensor]]) -> None:
        """Keep cases of a batch: the volume (1, H, W, D), ``pred`` and ``label`` one-hot (C, H, W, D)."""
        for case in output[: max(self.num_volumes - len(self.volumes[HEADINGS[0]]), 0)]:
            for heading, key in self.rows.items():
                channels = case[key].detach().float().cpu().numpy()
                self.volumes[heading].append(channels[0] if heading == HEADINGS[0] else channels.argmax(0))

    def figure(self, title: str = "") -> Figure:
        """The montage of what was collected: the volumes thrice, with the classes over them."""
        groups = dict.fromkeys(HEADINGS, self.volumes[HEADINGS[0]])
        overlays = {heading: self.volumes[heading] for heading in HEADINGS[1:]}
        return montage(groups, self.spacing, title=title, axcodes=self.axcodes, overlays=overlays)


class SegmentationMontage(ValidationMontage):
    """Attached to an evaluator, draw held-out volumes with predicted and drawn classes after every validation.

    Args:
        folder: where the PNG goes, one per epoch.
        writer: TensorBoard writer that receives it, too.
        shown: ``num_volumes`` (6), ``spacing`` in mm and ``axcodes`` of :class:`SegmentationPictures`.
    """

    def __init__(self, folder: str | Path, writer: SummaryWriter, **shown: Any) -> None:
        super().__init__("segmentation", SegmentationPictures(**shown), folder, writer)
