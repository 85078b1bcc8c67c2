"""Pairs of volume and label map, drawn from masks, on the disk with a datalist."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from tqdm import tqdm

from medical_diffusion_components.control.branch import ControlledDenoiser
from medical_diffusion_components.control.mask_channels import MaskChannels
from medical_diffusion_components.control.masks import (
    AskedMask,
    check_augmentations,
    first_of_patient,
    read_asked_mask,
    varied,
)
from medical_diffusion_components.control.sampling import draw_controlled
from medical_diffusion_components.control.structures import implausible
from medical_diffusion_components.data.splits import SPLITS, split_patients
from medical_diffusion_components.data.volume_notes import note_beside, note_path
from medical_diffusion_components.diffusion.generator import LatentDiffusionGenerator
from medical_diffusion_components.diffusion.noise_latent import NoiseLatent
from medical_diffusion_components.distributed import gathered, process_rank, share, wait_for_all
from medical_diffusion_components.files import file_hash, write_atomically, write_json
from medical_diffusion_components.reports.volume_writer import (
    SyntheticVolumeWriter,
    nifti_image,
    remove_volume,
)
from medical_diffusion_components.transforms.scale_as_prepared import WINDOW

__all__ = ["PairSampling", "PairWriter"]

logger = logging.getLogger(__name__)

STRONGEST = 2.0  # factor of a branch's additions beyond which it is far from its training


class PairWriter(SyntheticVolumeWriter):
    """Writes ``images/pair_<seed>.nii.gz`` with its note, ``labels/pair_<seed>.nii.gz`` and ``dataset.json``.

    The folder is prepared data: ``swin_unetr_finetune`` takes it as its ``dataset_dir``. Volumes of one mask are of one
    patient there, and so are those of masks of one patient, so that nobody is in two splits.

    Args:
        folder: where the pairs go.
        weights: file of the generator's weights.
        control: file of the branch's weights.
        facts: what else goes into every note.
        classes: name -> value.
        window: intensities shown as black and white in the montage.
    """

    def __init__(
        self,
        folder: str | Path,
        weights: str | Path,
        control: str | Path,
        facts: Mapping[str, Any],
        classes: Mapping[str, int],
        window: Sequence[float] = (0.0, 255.0),
    ) -> None:
        super().__init__(Path(folder) / "images", weights, facts, name="pair", window=window)
        self.labels = Path(folder) / "labels"
        self.control = Path(control)
        self.classes = dict(classes)
        self.replaced = 0  # pairs of other masks that were there before

    def prepare(self) -> None:
        """As for synthetic volumes: a folder with others in it is refused."""
        super().prepare()
        self.facts["control_sha256"] = file_hash(self.control)

    def write_pair(
        self, seed: int, volume: np.ndarray, mask: AskedMask, facts: Mapping[str, Any], seconds: float
    ) -> None:
        """Write one pair; the volume comes last and a former one goes first, so each has its own label map.

        Args:
            seed: of the starting noise.
            volume: intensities (H, W, D).
            mask: what was asked for, on the same grid.
            facts: of this pair, for its note; ``mask`` among them, to which the hash of the written label map is added.
            seconds: that it took.
        """
        path = self.path(seed)
        former = note_beside(path).get("mask")
        remove_volume(path)
        label = write_atomically(self.labels / path.name, partial(nib.save, nifti_image(mask.labels, mask.affine)))
        own = {**facts["mask"], "sha256": file_hash(label)}
        self.replaced += former is not None and former["sha256"] != own["sha256"]
        tensor = MetaTensor(torch.from_numpy(volume[None]), affine=torch.from_numpy(mask.affine))
        self.write(seed, tensor, seconds, facts={**facts, "mask": own})

    def write_datalist(self) -> Path:
        """``dataset.json`` over all pairs in the folder, once every process has written its own."""
        path = self.folder.parent / "dataset.json"
        wait_for_all()
        if process_rank() == 0:
            entries = []
            for volume in sorted(self.folder.glob("pair_*.nii.gz")):
                note = json.loads(note_path(volume).read_text())
                entry = {kind.removesuffix("s"): f"{kind}/{volume.name}" for kind in ("images", "labels")}
                patient = note["mask"].get("patient", note["mask"]["id"])
                ids = {"case_id": volume.name.removesuffix(".nii.gz"), "patient_id": patient}
                entries.append({**entry, **ids})
            write_json(path, {**self._described(), **_split(entries)})
        replaced = sum(gathered(self.replaced))
        before = len(list(self.folder.glob("pair_*.nii.gz"))) - sum(gathered(len(self.written)))
        if process_rank() == 0 and (replaced or before):
            print(
                f"remark: {replaced} pairs of other masks were replaced, and {before} that were there before are listed, "
                f"too: give another --pairs_dir to keep them apart",
                flush=True,
            )
        return path

    def _described(self) -> dict[str, Any]:
        notice = self.facts.get("notice")
        fixed = {"limits_from": "window", "limits": self.facts.get(WINDOW), "range": list(self.window)}
        return {
            **({"decided": {"scale": fixed}} if WINDOW in self.facts else {}),  # as preparation writes it
            "name": "synthetic pairs",
            "description": "Synthetic volumes drawn from label maps." + (f" {notice}" if notice else ""),
            "labels": {str(value): name for name, value in self.classes.items()},
        }


def _split(entries: Sequence[Mapping[str, str]]) -> dict[str, list[Mapping[str, str]]]:
    """By mask; pairs of one or two masks are all for training."""
    masks = {entry["patient_id"] for entry in entries}
    few = len(masks) < len(SPLITS)
    split = dict.fromkeys(masks, SPLITS[0]) if few else split_patients(masks)
    return {name: [entry for entry in entries if split[entry["patient_id"]] == name] for name in SPLITS}


class PairSampling:
    """Draws volumes from masks.

    Args:
        generator: with its weights.
        controlled: its denoiser with the branch, with its weights.
        writer: of the pairs.
        channels: label map -> what the branch sees.
        latent_shape: (C, h, w, d).
        image_size: voxels (H, W, D).
        spacing: mm per voxel.
        axcodes: where H, W and D point.
        intensity_range: intensities of -1 and 1.
        augment: how the masks are varied; see :func:`~medical_diffusion_components.control.varied`.
        flip_axes: of that.
        seed: of the first pair; the next ones have seed + 1, seed + 2, ...
        device: where to sample.
        structures: of the masks that the branch was trained with, which its weights' note has, to remark on masks unlike
            them; see :func:`~medical_diffusion_components.control.training_structures`.

    Raises:
        ValueError: an unknown way of varying masks.
    """

    def __init__(
        self,
        generator: LatentDiffusionGenerator,
        controlled: ControlledDenoiser,
        writer: PairWriter,
        channels: MaskChannels,
        latent_shape: Sequence[int],
        image_size: Sequence[int],
        spacing: Sequence[float],
        axcodes: str = "RAS",
        intensity_range: Sequence[float] = (0.0, 255.0),
        augment: Sequence[str] = (),
        flip_axes: Sequence[int] = (0,),
        seed: int = 0,
        device: torch.device | str = "cpu",
        structures: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self.generator = generator
        self.controlled = controlled
        self.writer = writer
        self.channels = channels
        self.noise = NoiseLatent(latent_shape)
        self.image_size = list(image_size)
        self.spacing = list(spacing)
        self.axcodes = axcodes
        self.intensity_range = intensity_range
        check_augmentations(augment)
        self.augment = list(augment)
        self.flip_axes = list(flip_axes)
        self.seed = seed
        self.device = device
        self.structures = structures

    def run(self, masks: Sequence[Path], volumes_per_mask: int = 1) -> Path:
        """Draw ``volumes_per_mask`` volumes from every mask, and return the path of the datalist.

        All masks are read before anything is written.

        Raises:
            ValueError: fewer than one volume per mask, or as reading of the masks and the writer raise it.
        """
        if volumes_per_mask < 1:
            raise ValueError(f"expected at least one volume per mask, got {volumes_per_mask}")
        read = [
            read_asked_mask(path, self.writer.classes, self.image_size, self.spacing, self.axcodes) for path in masks
        ]
        patients = first_of_patient(masks, read)
        there = np.unique(np.concatenate([np.unique(mask.labels) for mask in read]))
        if absent := [name for name, value in self.writer.classes.items() if value not in there]:
            logger.warning(f"no voxel of {', '.join(absent)} is in any of the {len(masks)} masks")
        self._remark(masks, read)
        self.writer.prepare()
        asked = [(number, mask) for number, mask in enumerate(read) for _ in range(volumes_per_mask)]
        for place, (number, mask) in tqdm(
            share(list(enumerate(asked))), desc="pairs", unit="pair", disable=process_rank() > 0
        ):
            ids = [f"mask_{self.seed + first * volumes_per_mask:06d}" for first in (number, patients[number])]
            self._draw(self.seed + place, mask, *ids)
        path = self.writer.write_datalist()
        self.writer.draw_montage()
        return path

    def _remark(self, paths: Sequence[Path], masks: Sequence[AskedMask]) -> None:
        """Log what a careful reader would want to know before such pairs are used: they are drawn all the same."""
        strength = self.controlled.strength
        if strength == 0:
            logger.warning("control_strength 0: the volumes are drawn without the masks and show nothing of them")
        elif strength > STRONGEST:
            logger.warning(f"control_strength {strength:g} is far from 1, with which the branch was trained")
        if self.structures is None:
            logger.info(f"{self.writer.control} does not say what its masks were like: nothing to compare these with")
            return
        found = [implausible(mask.labels, self.structures, self.writer.classes) for mask in masks]
        if unlike := [path.name for path, problems in zip(paths, found) if problems]:
            counted = Counter(problem for problems in found for problem in problems).most_common(3)
            logger.warning(
                f"{len(unlike)} of the {len(masks)} masks are unlike those that the branch was trained with, the first is "
                f"{unlike[0]}: {'; '.join(f'{problem} ({count} masks)' for problem, count in counted)}"
            )

    def _draw(self, seed: int, mask: AskedMask, id: str, patient: str) -> None:
        started = time.perf_counter()
        labels = varied(mask.labels, self.augment, self.spacing, seed, self.flip_axes)
        noise = self.noise(seed)[None].to(self.device)
        channels = self.channels(labels)[None].to(self.device)
        volume = draw_controlled(self.generator.eval(), self.controlled.eval(), noise, channels)[0, 0].cpu().numpy()
        low, high = (float(value) for value in self.intensity_range)
        intensities = ((volume.clip(-1, 1) + 1) / 2 * (high - low) + low).astype(np.float32)
        facts = {
            "synthetic": True,
            "mask": {
                **mask.origin,
                "id": id,
                "patient": patient,
                "augmentation": self.augment,
                "cut_off": mask.cut_off,
            },
            "control_strength": self.controlled.strength,
        }
        self.writer.write_pair(seed, intensities, mask._replace(labels=labels), facts, time.perf_counter() - started)
