"""Latents of the training volumes, encoded once and kept on disk for the second stage."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose
from tqdm import tqdm

from medical_diffusion_components import __version__
from medical_diffusion_components.chance import seed_of_name
from medical_diffusion_components.data.conditions import Conditions
from medical_diffusion_components.data.datasets import data_fingerprint
from medical_diffusion_components.distributed import process_rank, share, wait_for_all
from medical_diffusion_components.files import file_hash, write_atomically
from medical_diffusion_components.networks.vqgan import VQGAN

__all__ = ["cache_latents", "held_out_draws", "read_latents"]


@torch.no_grad()
def cache_latents(
    first_stage: VQGAN,
    weights: str | os.PathLike,
    cases: Sequence[dict],
    preprocessing: Callable[[dict], dict],
    preprocessing_settings: Mapping[str, Any],
    folder: str | os.PathLike,
    flip_axis: int = 0,
    device: torch.device | str = "cpu",
    views: int = 1,
    augmentation: Compose | None = None,
    augmentation_settings: Mapping[str, Any] | None = None,
    conditions: Conditions | None = None,
) -> list[dict]:
    """Encode every case and its mirror image, unless that was done before, and list the files.

    With several ``views``, each case is encoded as often: the first time as it is, then as ``augmentation`` makes it with
    random numbers that follow from the case and the number of the view.

    The files lie in a folder named by a hash of the first stage's weights, of the data, of the preprocessing and of the
    flip: whatever changes one of them changes the folder. Each file is written whole or not at all, so an interrupted
    call continues with the cases that are missing. Under ``torch.distributed`` the ranks share the work.

    Args:
        first_stage: the autoencoder with its weights loaded.
        weights: the file that they came from.
        cases: as :func:`~medical_diffusion_components.data.datasets.load_cases` lists them.
        preprocessing: case -> dictionary with ``image`` (C, H, W, D) in [-1, 1].
        preprocessing_settings: what ``preprocessing`` was configured with, part of the hash.
        folder: where the folders of latents are.
        flip_axis: spatial axis of the mirror image, 0 for H.
        device: where to encode.
        views: how often each case is encoded.
        augmentation: what makes a view of a volume (C, H, W, D); needed for more than one view.
        augmentation_settings: what ``augmentation`` was configured with, part of the hash.
        conditions: those that the training declares. The latents do not depend on them.

    Returns:
        One entry per case: ``image``, the ``.npy`` file with (2 views, latent_channels, h, w, d), of each view in turn the
        plain and the mirrored latent as float32, ``case_id`` and ``patient_id``; where conditions are declared,
        ``conditions``, (V,).

    Raises:
        ValueError: a ``flip_axis`` other than 0, 1, 2, fewer than one view, several without an augmentation, or a volume
            encodes to values that are not finite; and as :meth:`Conditions.of_cases` raises it.
    """
    if views < 1 or (views > 1 and augmentation is None):
        raise ValueError(
            f"expected at least one view, and an augmentation if there are several, got {views}, {augmentation}"
        )
    if flip_axis not in (0, 1, 2):
        raise ValueError(f"flip_axis must be 0, 1 or 2 (H, W or D), got {flip_axis}")
    facts = {
        "weights": file_hash(weights),
        "data": data_fingerprint(cases),
        "preprocessing": preprocessing_settings,
        "flip_axis": flip_axis,
        "version": __version__,
    }
    if views > 1:
        facts |= {"views": views, "augmentation": augmentation_settings}
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    entries = _entries(cases, Path(folder) / key[:16], conditions)
    missing = [(case, entry) for case, entry in share(list(zip(cases, entries))) if not Path(entry["image"]).exists()]
    first_stage = first_stage.to(device).eval()
    for case, entry in tqdm(missing, desc="encoding latents", unit="case", disable=process_rank() > 0 or not missing):
        image = torch.as_tensor(preprocessing(case)["image"]).to(device)
        seen = [_view(image, case["case_id"], number, augmentation) for number in range(views)]
        plain_and_mirrored = [side for view in seen for side in (view, view.flip(1 + flip_axis))]
        latents = torch.stack([first_stage.encode_stage_2_inputs(side[None])[0] for side in plain_and_mirrored])
        if not latents.isfinite().all():
            raise ValueError(f"case {case['case_id']} encodes to values that are not finite with the weights {weights}")
        write_atomically(entry["image"], np.save, latents.float().cpu().numpy())
    wait_for_all()
    return entries


def _entries(cases: Sequence[dict], folder: Path, conditions: Conditions | None) -> list[dict[str, Any]]:
    """What :func:`cache_latents` returns, whether the files are there or not."""
    entries: list[dict[str, Any]] = [
        {
            "image": str(folder / f"{hashlib.sha256(case['case_id'].encode()).hexdigest()[:20]}.npy"),
            "case_id": case["case_id"],
            "patient_id": case["patient_id"],
        }
        for case in cases
    ]
    if conditions:
        for entry, vector in zip(entries, conditions.of_cases(cases)):
            entry["conditions"] = vector
    return entries


def _view(image: torch.Tensor, case_id: str, number: int, augmentation: Compose | None) -> torch.Tensor:
    if number == 0 or augmentation is None:
        return image
    return torch.as_tensor(augmentation.set_random_state(seed=seed_of_name(f"{case_id}/view {number}"))(image))


def read_latents(entries: Sequence[dict]) -> Iterator[torch.Tensor]:
    """All latents of each case that :func:`cache_latents` lists, (2 views, C, h, w, d) each."""
    for entry in entries:
        yield torch.from_numpy(np.load(entry["image"], allow_pickle=False))


def held_out_draws(entries: Sequence[dict], draws: int) -> list[dict]:
    """Each latent ``draws`` times, numbered, for a validation loss at fixed timesteps and noise.

    Returns:
        The entries with ``draw`` in [0, draws) and ``draws`` added.
    """
    return [{**entry, "draw": draw, "draws": draws} for entry in entries for draw in range(draws)]
