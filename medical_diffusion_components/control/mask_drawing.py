"""Synthesised masks: label maps that a mask generator draws, cleaned, held against the training's, and written down."""

from __future__ import annotations

import json
import logging
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from medical_diffusion_components.control.structures import cleaned, implausible
from medical_diffusion_components.data.datasets import nifti_files
from medical_diffusion_components.data.volume_notes import is_synthetic, note_path
from medical_diffusion_components.diffusion.generator import LatentDiffusionGenerator
from medical_diffusion_components.diffusion.noise_latent import NoiseLatent
from medical_diffusion_components.distributed import gathered, process_rank, share, world_size
from medical_diffusion_components.reports.montages import SampleMontage
from medical_diffusion_components.reports.volume_writer import SyntheticVolumeWriter
from medical_diffusion_components.transforms.spacing_affine import SpacingAffine

__all__ = ["DrawnMask", "MaskMontage", "MaskSampling", "draw_labels", "drawn_masks", "note_of_drawn"]

logger = logging.getLogger(__name__)

KIND = "label map"  # in a note
LOG_EVERY = 5  # masks left out, between two lines of the log that say why
TRIES = 10  # times as many masks are drawn as were asked for, before it is given up


class DrawnMask(NamedTuple):
    """A label map that was drawn and cleaned."""

    labels: np.ndarray  # (H, W, D) uint8
    changed: float  # share of its voxels that cleaning changed
    problems: list[str]  # what is implausible in it
    seconds: float  # that it took


def note_of_drawn(path: str | os.PathLike) -> dict[str, Any]:
    """The note that :class:`MaskSampling` wrote beside a label map; empty if it drew none there."""
    note = json.loads(note_path(path).read_text()) if is_synthetic(path) else {}
    return note if note.get("kind") == KIND else {}


def drawn_masks(folder: str | os.PathLike) -> list[Path]:
    """The label maps that ``masks.yaml`` drew.

    Raises:
        FileNotFoundError: there are none.
        ValueError: a label map without the note that says which generator drew it.
    """
    files = nifti_files(Path(folder)) if Path(folder).is_dir() else []
    if not files:
        raise FileNotFoundError(f"expected synthesised masks in {folder}, but there are none: masks.yaml draws them")
    if unknown := [file for file in files if not note_of_drawn(file)]:
        raise ValueError(
            f"{len(unknown)} of the {len(files)} label maps in {folder} have no note that they were synthesised, the first "
            f"is {unknown[0].name}: masks of your own are given by --masks given --masks_dir"
        )
    return files


@torch.no_grad()
def draw_labels(generator: LatentDiffusionGenerator, noise: torch.Tensor) -> np.ndarray:
    """Label maps (B, H, W, D) uint8 from starting noise (B, C, h, w, d): the class in which each voxel lies deepest."""
    return generator.eval()(noise).argmax(1).to(torch.uint8).cpu().numpy()


def _causes(refused: Counter[str]) -> str:
    return "; ".join(f"{problem} ({count} times)" for problem, count in refused.most_common(3))


class MaskMontage(SampleMontage):
    """Every so many epochs, draw label maps as they come, before any cleaning; settings as for the montage of samples."""

    name = "masks"
    generator: LatentDiffusionGenerator

    def draw(
        self, device: torch.device | str
    ) -> tuple[dict[str, list[np.ndarray]], dict[str, list[np.ndarray]] | None]:
        drawn = [draw_labels(self.generator, self.noise(n)[None].to(device))[0] for n in range(self.num_volumes)]
        most = max(1, *(int(labels.max()) for labels in drawn))
        return {"synthesised masks": [labels.astype(np.float32) / most * 2 - 1 for labels in drawn]}, None


class MaskSampling:
    """Draws label maps until there are enough that are plausible.

    Several processes share the seeds. Together they write the label maps that one process with as many threads would.

    Args:
        generator: of masks, with its weights.
        folder: where the label maps go, ``mask_<seed>.nii.gz`` and a note beside each.
        weights: file of the generator's weights; their note has the ``structures``' limits.
        facts: what else goes into every note.
        classes: name -> value.
        limits: of the structures, as :func:`~medical_diffusion_components.control.structure_limits` makes them.
        latent_shape: (C, h, w, d).
        spacing: mm per voxel.
        axcodes: where H, W and D point.
        seed: of the first mask that is tried; the next have seed + 1, seed + 2, ...
        device: where to sample.
    """

    def __init__(
        self,
        generator: LatentDiffusionGenerator,
        folder: str | Path,
        weights: str | Path,
        facts: Mapping[str, Any],
        classes: Mapping[str, int],
        limits: Mapping[str, Mapping[str, Any]],
        latent_shape: Sequence[int],
        spacing: Sequence[float],
        axcodes: str = "RAS",
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.generator = generator
        self.classes = dict(classes)
        self.writer = SyntheticVolumeWriter(folder, weights, facts, name="mask", window=(0, max(classes.values())))
        self.limits = limits
        self.noise = NoiseLatent(latent_shape)
        self.place = SpacingAffine(spacing, axcodes)
        self.seed = seed
        self.device = device

    def run(self, num_masks: int) -> list[Path]:
        """Draw and write ``num_masks`` plausible masks, and return their paths.

        Raises:
            ValueError: fewer than one was asked for, or hardly any is plausible; what is wrong is said.
        """
        if num_masks < 1:
            raise ValueError(f"expected at least one mask to draw, got {num_masks}")
        self.writer.prepare()
        refused: Counter[str] = Counter()
        plausible = left_out = 0
        bar = tqdm(total=num_masks, desc="masks", unit="mask", disable=process_rank() > 0)
        for seed, problems, own in self._judged(range(self.seed, self.seed + TRIES * num_masks)):
            if problems:
                refused.update(problems)
                left_out += 1
                if left_out % LOG_EVERY == 0:
                    logger.info(f"{left_out} of {plausible + left_out} drawn masks left out: {_causes(refused)}")
                continue
            if own is not None:
                self._write(seed, own)
            plausible += 1
            bar.update()
            if plausible == num_masks:
                break
        bar.close()
        if left_out % LOG_EVERY:
            logger.info(f"{left_out} of {plausible + left_out} drawn masks left out: {_causes(refused)}")
        if plausible < num_masks:
            raise ValueError(
                f"only {plausible} of {TRIES * num_masks} drawn masks are plausible, {num_masks} were "
                f"asked for: {_causes(refused)}. Train the generator of masks for longer"
            )
        self.writer.draw_montage()
        return sorted(path for paths in gathered(self.writer.written) for path in paths)

    def _judged(self, seeds: Sequence[int]) -> Iterator[tuple[int, list[str], DrawnMask | None]]:
        """Seed by seed, what is implausible in its mask, and the mask itself in the process that drew it."""
        for first in range(0, len(seeds), world_size()):
            at_once = seeds[first : first + world_size()]  # one for each process, or none for the last ones
            own = {seed: self.draw(seed) for seed in share(at_once)}
            found = gathered([mask.problems for mask in own.values()])
            for seed, (problems,) in zip(at_once, found):
                yield seed, problems, own.get(seed)

    def draw(self, seed: int) -> DrawnMask:
        """The mask of a seed, cleaned and judged."""
        started = time.perf_counter()
        labels = draw_labels(self.generator, self.noise(seed)[None].to(self.device))[0]
        clean = cleaned(labels, self.limits, self.classes)
        problems = implausible(clean.labels, self.limits, self.classes)
        return DrawnMask(clean.labels, clean.changed, problems, time.perf_counter() - started)

    def _write(self, seed: int, mask: DrawnMask) -> None:
        path = self.writer.path(seed)
        affine = self.place(torch.from_numpy(mask.labels[None])).affine.numpy()
        note = {
            "seed": seed,
            "synthetic": True,
            "kind": KIND,
            "classes": self.classes,
            "cleaned": round(mask.changed, 6),
            **self.writer.facts,
            "seconds": round(mask.seconds, 3),
        }
        self.writer.format.save(path, mask.labels, affine, note)
        self.writer.written.append(path)
