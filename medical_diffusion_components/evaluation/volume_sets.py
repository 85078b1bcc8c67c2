"""The sets of volumes that an evaluation compares: synthetic ones sampled where they are missing, and reconstructions."""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from medical_diffusion_components.data.condition_requests import RequestedConditions
from medical_diffusion_components.data.datasets import SAME_SPACING, image_files, median_spacing
from medical_diffusion_components.data.volume_notes import is_edited, note_beside, note_path, noted_scale
from medical_diffusion_components.diffusion.noise_latent import NoiseLatent
from medical_diffusion_components.distributed import gathered, share
from medical_diffusion_components.files import file_hash, write_atomically
from medical_diffusion_components.networks.vqgan import VQGAN
from medical_diffusion_components.preparation.same_scan import scans_among
from medical_diffusion_components.reports.volume_writer import SyntheticVolumeWriter
from medical_diffusion_components.transforms.scale_as_prepared import WRITTEN, fixed_scale, scale_facts
from medical_diffusion_components.transforms.spacing_affine import SpacingAffine
from medical_diffusion_components.weights import provenance

__all__ = ["folder_cases", "guided_cases", "sampled_cases", "set_remarks", "write_reconstructions"]

# what a volume that is there must have been made with
SAME = ("weights_sha256", "sampler", "steps", "guidance_scale", "conditions")


def folder_cases(folder: str | Path) -> list[dict[str, Any]]:
    """Every image in a folder as a case of its own, with the ``conditions`` that its note says it was made under.

    Label maps are left out, with a warning.

    Raises:
        FileNotFoundError: no such folder, or none in it.
        ValueError: a volume that was edited from a real scan, which is neither real nor synthetic.
    """
    folder = Path(folder).expanduser()
    files = image_files(folder) if folder.is_dir() else []
    if not files:
        raise FileNotFoundError(
            f"expected volumes (.nii, .nii.gz) in {folder}, found none: draw some with inference.json, or name their "
            "folder by --samples_dir"
        )
    if edited := [file for file in files if is_edited(file)]:
        raise ValueError(
            f"{edited[0]} was edited from a real scan: move it out of {folder}, it is not a synthetic volume"
        )
    names = [str(file.relative_to(folder)) for file in files]
    return [
        {"image": str(file), "case_id": name, "patient_id": name, **noted_scale(file), **_noted_conditions(file)}
        for file, name in zip(files, names)
    ]


def set_remarks(
    name: str,
    cases: Sequence[Mapping[str, Any]],
    reference: Sequence[Mapping[str, Any]],
    training: Sequence[Mapping[str, Any]],
) -> list[str]:
    """What a careful reader would want to know of the files that are judged: repeated, real, or of another spacing.

    No file is named: its name may be that of a patient, and the report of an evaluation travels with a released data set.
    """
    found, files = [], [file_hash(case["image"]) for case in cases]
    if repeated := len(files) - len(set(files)):
        found.append(f"{repeated} of the {name} volumes are the same file as another one")
    if real := scans_among(cases, [*reference, *training]):
        first = [case["case_id"] for case in cases].index(real[0]) + 1
        found.append(
            f"{len(real)} of the {name} volumes are scans of the real data, the first is number {first} in the order of "
            "their names (perhaps mirrored, cut or rescaled): no samples"
        )
    own, others = np.array(median_spacing(cases)), np.array(median_spacing(reference))
    if (np.abs(own / others - 1) > SAME_SPACING).any():
        one, other = (" x ".join(f"{length:.3g}" for length in spacing) for spacing in (own, others))
        found.append(
            f"{name} volumes have voxels of {one} mm, held-out ones of {other} mm (right, anterior, superior): they are "
            "compared voxel by voxel, as if these were equal"
        )
    return found


def _noted_conditions(file: Path) -> dict[str, Any]:
    found = note_beside(file).get("conditions")
    return {"conditions": found} if isinstance(found, dict) else {}


@torch.no_grad()
def sampled_cases(
    generator: nn.Module,
    latent_shape: Sequence[int],
    writer: SyntheticVolumeWriter,
    affine: SpacingAffine,
    num_volumes: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
    conditions: RequestedConditions | None = None,
    guidance_scale: float | None = None,
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
        conditions: seed -> what each volume is asked for; None: the generator has no conditions.
        guidance_scale: in place of the generator's own; it stands in the notes.

    Returns:
        the cases, each with the ``conditions`` that it was asked for, if there are any.

    Raises:
        ValueError: the folder holds a volume of that seed that was made with other weights, another sampler or under other
            conditions.
    """
    writer.prepare()
    wanted = range(seed, seed + num_volumes)
    asked = {number: conditions(number) for number in wanted} if conditions is not None else {}
    values = {
        n: {"conditions": conditions.conditions.decode(asked[n])} if conditions is not None else {} for n in wanted
    }
    missing = [number for number in wanted if not _is_there(writer, number, values[number])]
    gathered(None)
    generator = generator.to(device).eval()
    if guidance_scale is not None:
        generator = copy.copy(generator)  # which shares the weights
        vars(generator).update(guidance_scale=float(guidance_scale))
    noise = NoiseLatent(latent_shape)
    for number in tqdm(share(missing), desc="sampling", unit="volume", disable=not missing):
        start = time.perf_counter()
        under = [asked[number][None].to(device)] if asked else []
        volume = generator(noise(number)[None].to(device), *under)[0].float().cpu().clamp(-1, 1)
        scaled = affine((volume + 1) / 2 * (WRITTEN[1] - WRITTEN[0]) + WRITTEN[0])
        writer.write(number, scaled, time.perf_counter() - start, asked.get(number))
    gathered(None)
    scale = scale_facts(WRITTEN, provenance(writer.weights).get("window"))  # as the writer's notes say it
    files = [writer.path(number) for number in wanted]
    return [
        {"image": str(file), "case_id": file.name, "patient_id": file.name, **scale, **values[number]}
        for number, file in zip(wanted, files)
    ]


def guided_cases(
    sampling: partial[list[dict[str, Any]]], scales: Sequence[float], in_use: float
) -> dict[str, partial[list[dict[str, Any]]]]:
    """The same volumes at further guidance scales, each scale in a folder of its own beside that of the samples.

    Args:
        sampling: :func:`sampled_cases` with all its arguments.
        scales: of classifier-free guidance.
        in_use: the scale that ``sampling`` has; it is left out.

    Returns:
        ``guidance_2`` -> callable that gives the cases, for every further scale.
    """
    found = {}
    for scale in sorted({float(scale) for scale in scales} - {float(in_use)}):
        name, writer = f"guidance_{scale:g}", copy.copy(sampling.keywords["writer"])
        writer.folder = writer.folder.with_name(f"{writer.folder.name}_{name}")
        writer.facts, writer.written = {**writer.facts, "guidance_scale": scale}, []
        found[name] = partial(sampling, writer=writer, guidance_scale=scale)
    return found


def _is_there(writer: SyntheticVolumeWriter, seed: int, values: Mapping[str, Any]) -> bool:
    path = writer.path(seed)
    if not path.is_file():
        return False
    note = json.loads(note_path(path).read_text())
    wanted = {**writer.facts, **values}
    for name in SAME:
        if note.get(name) != wanted.get(name):
            raise ValueError(
                f"{path} was made with {name} {note.get(name)}, not {wanted.get(name)}: remove the folder, or name "
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
        scaled = affine((again + 1) / 2 * (WRITTEN[1] - WRITTEN[0]) + WRITTEN[0])
        image = nib.Nifti1Image(scaled.as_tensor()[0].numpy(), scaled.affine.numpy())
        write_atomically(path, partial(nib.save, image))
    gathered(None)
    return [
        {**case, "image": str(path), **scale_facts(WRITTEN, fixed_scale(case).get("window"))}
        for case, path in zip(cases, paths)
    ]
