"""The sets of volumes that an evaluation compares: synthetic ones sampled where they are missing, and reconstructions."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import torch
from torch import Tensor, nn
from tqdm import tqdm

from medical_diffusion_components.data.datasets import is_edited, nifti_files, noted_scale
from medical_diffusion_components.diffusion.noise_latent import NoiseLatent
from medical_diffusion_components.distributed import gathered, share
from medical_diffusion_components.files import file_hash, write_atomically
from medical_diffusion_components.networks.vqgan import VQGAN
from medical_diffusion_components.reports.volume_writer import SyntheticVolumeWriter, note_path
from medical_diffusion_components.transforms.scale_as_prepared import fixed_scale, scale_facts
from medical_diffusion_components.transforms.spacing_affine import SpacingAffine
from medical_diffusion_components.weights import provenance

__all__ = ["folder_cases", "sampled_cases", "write_reconstructions"]

WINDOW = (0.0, 255.0)  # intensities of written volumes
SAME = ("weights_sha256", "sampler", "steps")  # what a volume that is there must have been made with


def folder_cases(folder: str | Path) -> list[dict[str, Any]]:
    """Every NIfTI file in a folder as a case of its own.

    Raises:
        FileNotFoundError: no such folder, or none in it.
        ValueError: a volume that was edited from a real scan, which is neither real nor synthetic.
    """
    folder = Path(folder).expanduser()
    files = nifti_files(folder) if folder.is_dir() else []
    if not files:
        raise FileNotFoundError(f"expected volumes (.nii, .nii.gz) in {folder}, found none")
    if edited := [file for file in files if is_edited(file)]:
        raise ValueError(
            f"{edited[0]} was edited from a real scan: move it out of {folder}, it is not a synthetic volume"
        )
    names = [str(file.relative_to(folder)) for file in files]
    return [
        {"image": str(file), "case_id": name, "patient_id": name, **noted_scale(file)}
        for file, name in zip(files, names)
    ]


@torch.no_grad()
def sampled_cases(
    generator: nn.Module,
    latent_shape: Sequence[int],
    writer: SyntheticVolumeWriter,
    affine: SpacingAffine,
    num_volumes: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> list[dict[str, Any]]:
    """Synthetic volumes ``seed`` to ``seed + num_volumes - 1``; those that the folder has already are kept.

    Processes of torchrun share the work.

    Args:
        generator: noise latent -> volume in [-1, 1], with its weights.
        latent_shape: (C, h, w, d).
        writer: names files and notes.
        affine: where the volumes lie in the world.
        num_volumes: how many.
        seed: of the first.
        device: where to compute.

    Raises:
        ValueError: the folder holds a volume of that seed that was made with other weights or another sampler.
    """
    writer.prepare()
    wanted = range(seed, seed + num_volumes)
    missing = [number for number in wanted if not _is_there(writer, number)]
    gathered(None)
    generator = generator.to(device).eval()
    noise = NoiseLatent(latent_shape)
    for number in tqdm(share(missing), desc="sampling", unit="volume", disable=not missing):
        start = time.perf_counter()
        volume = generator(noise(number)[None].to(device))[0].float().cpu().clamp(-1, 1)
        scaled = affine((volume + 1) / 2 * (WINDOW[1] - WINDOW[0]) + WINDOW[0])
        writer.write(number, scaled, time.perf_counter() - start)
    gathered(None)
    scale = scale_facts(WINDOW, provenance(writer.weights).get("window"))  # as the writer's notes say it
    files = [writer.path(number) for number in wanted]
    return [{"image": str(file), "case_id": file.name, "patient_id": file.name, **scale} for file in files]


def _is_there(writer: SyntheticVolumeWriter, seed: int) -> bool:
    path = writer.path(seed)
    if not path.is_file():
        return False
    note = json.loads(note_path(path).read_text())
    for name in SAME:
        if note.get(name) != writer.facts.get(name):
            raise ValueError(
                f"{path} was made with {name} {note.get(name)}, not {writer.facts.get(name)}: remove the folder, or name "
                "it as samples_dir to judge it as it is"
            )
    return True


@torch.no_grad()
def write_reconstructions(
    cases: Sequence[Mapping[str, Any]],
    first_stage: VQGAN,
    weights: str | Path,
    read: Callable[[Mapping[str, Any]], Tensor],
    key: str,
    folder: str | Path,
    affine: SpacingAffine,
    device: torch.device | str = "cpu",
) -> list[dict[str, Any]]:
    """Send volumes through the first stage and write them as synthetic ones are written.

    Both then have the first stage's texture, and what is left between them is the diffusion's.

    Args:
        cases: with ``image``.
        first_stage: with its weights.
        weights: file that they came from, for its hash.
        read: case -> preprocessed volume (C, H, W, D) in [-1, 1].
        key: describes the preprocessing.
        folder: ``<hash>.nii.gz`` go there; those that are there are kept.
        affine: where the written volumes lie in the world.
        device: where to compute.

    Returns:
        the cases with ``image`` replaced by the written files.
    """
    first_stage = first_stage.to(device).eval()
    weights_sha256, paths = file_hash(weights), []
    for case in cases:
        scale = json.dumps(fixed_scale(case)) if fixed_scale(case) else ""
        text = f"{file_hash(case['image'])}{key}{scale}{weights_sha256}"
        name = hashlib.sha256(text.encode()).hexdigest()[:24]
        paths.append(Path(folder) / f"{name}.nii.gz")
    missing = [(case, path) for case, path in zip(cases, paths) if not path.is_file()]
    gathered(None)
    for case, path in tqdm(share(missing), desc="reconstructing", unit="volume", disable=not missing):
        latent = first_stage.encode_stage_2_inputs(read(case)[None].to(device))
        again = first_stage.decode_stage_2_outputs(latent)[0].float().cpu().clamp(-1, 1)
        scaled = affine((again + 1) / 2 * (WINDOW[1] - WINDOW[0]) + WINDOW[0])
        image = nib.Nifti1Image(scaled.as_tensor()[0].numpy(), scaled.affine.numpy())
        write_atomically(path, partial(nib.save, image))
    gathered(None)
    return [
        {**case, "image": str(path), **scale_facts(WINDOW, fixed_scale(case).get("window"))}
        for case, path in zip(cases, paths)
    ]
