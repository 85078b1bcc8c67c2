"""Pairs of mask and latent, from which a control branch learns."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.inferers import DiffusionInferer
from torch import Tensor

from medical_diffusion_components.control.structures import load_labels
from medical_diffusion_components.data.datasets import load_cases
from medical_diffusion_components.distributed import share, wait_for_all
from medical_diffusion_components.files import write_atomically
from medical_diffusion_components.transforms.load_latent import RandLoadLatentd

__all__ = ["ControlInferer", "RandLoadPaird", "WithMask", "cache_masks", "label_classes", "one_process", "paired_cases"]

logger = logging.getLogger(__name__)


def one_process(file: str) -> None:
    """Trainings of a branch and of masks do not average gradients over processes.

    Raises:
        ValueError: ``torchrun`` has started several.
    """
    if (processes := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise ValueError(f"{file} runs in one process, torchrun has started {processes}: run it without")


def paired_cases(dataset_dir: str | os.PathLike, split: str) -> list[dict]:
    """The cases of a split that have a label map.

    Raises:
        ValueError: none has; or as :func:`~medical_diffusion_components.data.load_cases` raises it.
    """
    cases = load_cases(dataset_dir, split)
    pairs = [case for case in cases if "label" in case]
    if not pairs:
        raise ValueError(
            f"{dataset_dir}: none of the {len(cases)} {split} cases has a label map: list them in dataset.json as "
            '{"image": "...", "label": "...", "case_id": "...", "patient_id": "..."}'
        )
    if len(pairs) < len(cases):
        logger.warning(
            f"{len(cases) - len(pairs)} of the {len(cases)} {split} cases have no label map and are left out"
        )
    return pairs


def label_classes(dataset_dir: str | os.PathLike, declared: Mapping[str, int] | None = None) -> dict[str, int]:
    """Name and value of each class of the label maps: as declared, or by the table ``labels`` in ``dataset.json``.

    Raises:
        ValueError: neither is there, or values are not 0, 1, 2, ... without gaps.
    """
    if declared is None:
        path = Path(dataset_dir) / "dataset.json"
        table = json.loads(path.read_text()).get("labels") if path.is_file() else None
        if not isinstance(table, dict):
            raise ValueError(
                f'{path} has no table of labels: give --classes, such as "{{background: 0, breast: 1, tumour: 2}}"'
            )
        declared = {str(name): int(value) for value, name in table.items()}
    classes = dict(sorted(declared.items(), key=lambda item: item[1]))
    if list(classes.values()) != list(range(len(classes))) or len(classes) < 2:
        raise ValueError(f"classes must be numbered 0 (background), 1, 2, ... without gaps, got {classes}")
    return classes


def cache_masks(
    cases: Sequence[dict],
    latents: Sequence[dict],
    classes: Mapping[str, int],
    axcodes: str,
    image_size: Sequence[int],
) -> list[dict]:
    """Write the label map of each case beside its latent, on the grid that the first stage saw, and list both.

    Args:
        cases: with ``image`` and ``label``.
        latents: of these cases, as :func:`~medical_diffusion_components.data.cache_latents` lists them, whose folder's name
            stands for the content of the label maps, too.
        classes: name -> value.
        axcodes: where H, W and D point.
        image_size: voxels (H, W, D).

    Returns:
        the entries of ``latents`` with ``mask``, a ``.npy`` file of (H, W, D) uint8.

    Raises:
        VolumeError: a label map that does not fit its image or the classes.
        ValueError: more than 256 classes.
    """
    if len(classes) > 256:
        raise ValueError(f"expected at most 256 classes, got {len(classes)}")
    prepared = load_labels(classes, axcodes, image_size)
    key = hashlib.sha256(json.dumps([dict(classes), axcodes]).encode()).hexdigest()[:8]
    paths = [Path(entry["image"]).with_suffix(f".mask_{key}.npy") for entry in latents]
    for case, path in share(list(zip(cases, paths, strict=True))):
        if not path.exists():
            labels = np.asarray(prepared(case)["label"][0]).astype(np.uint8)
            write_atomically(path, functools.partial(_save, labels=labels))
    wait_for_all()
    return [{**entry, "mask": str(path)} for entry, path in zip(latents, paths)]


def _save(path: Path, labels: np.ndarray) -> None:
    with path.open("wb") as file:
        np.save(file, labels)


class RandLoadPaird(RandLoadLatentd):
    """Load a latent, plain or mirrored, and its mask, mirrored with it.

    Args:
        keys: the latent's file.
        mask_key: the mask's file.
        flip_prob: probability of the mirror image.
        flip_axis: along which the latents were mirrored; 0 is H.

    Shape:
        files of (2, C, h, w, d) and (H, W, D) -> (C, h, w, d) and (H, W, D) uint8
    """

    def __init__(self, keys: str, mask_key: str = "mask", flip_prob: float = 0.5, flip_axis: int = 0) -> None:
        super().__init__(keys, flip_prob)
        self.mask_key = mask_key
        self.flip_axis = flip_axis

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        loaded = super().__call__(data)
        labels = np.load(loaded[self.mask_key], allow_pickle=False)
        mirrored = self.transform._do_transform
        loaded[self.mask_key] = np.flip(labels, self.flip_axis).copy() if mirrored else labels
        return loaded


class WithMask:
    """A batch as ``prepare_batch`` makes it, with the batch's mask for the network.

    Args:
        prepare_batch: of the second stage, for training or for held-out draws.
        mask_key: entry of the batch, (B, M, H, W, D).
    """

    def __init__(self, prepare_batch: Any, mask_key: str = "mask") -> None:
        self.prepare_batch = prepare_batch
        self.mask_key = mask_key

    def __call__(
        self, batchdata: dict, device: str | torch.device | None = None, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[Tensor, Tensor, tuple, dict]:
        images, target, args, inputs = self.prepare_batch(batchdata, device, non_blocking, **kwargs)
        mask = batchdata[self.mask_key].to(device, non_blocking=non_blocking, **kwargs)
        return images, target, args, {**inputs, "mask": mask}


class ControlInferer(DiffusionInferer):
    """MONAI's diffusion inferer with a mask that is passed on to a controlled denoiser."""

    def __call__(  # type: ignore[override]  # MONAI's has no mask
        self,
        inputs: Tensor,
        diffusion_model: Any,
        noise: Tensor,
        timesteps: Tensor,
        mask: Tensor,
        condition: Tensor | None = None,
    ) -> Tensor:
        noisy = self.scheduler.add_noise(original_samples=inputs, noise=noise, timesteps=timesteps)
        return diffusion_model(x=noisy, timesteps=timesteps, context=condition, mask=mask)
