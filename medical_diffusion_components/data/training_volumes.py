"""Where a training without labels takes its volumes from: files, or a generator that makes new ones in every epoch."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from medical_diffusion_components.data.datasets import describe_data, load_cases, median_spacing
from medical_diffusion_components.data.sampled_volumes import SampledVolumes, VolumeSampler, describe_sampling

__all__ = ["TrainingVolumes", "training_volumes"]


class TrainingVolumes(NamedTuple):
    """What :func:`training_volumes` finds. Entries hold ``image``, a file or a volume in memory, and ``case_id``."""

    training: Sequence[Mapping[str, Any]]
    validation: Sequence[Mapping[str, Any]]
    spacing: list[float]  # mm along H, W, D
    made_from: dict[str, Any]  # for the note beside the weights


def training_volumes(
    find_files: Callable[[], str],
    dataset_dir: str | None = None,
    num_training: int | None = None,
    generator: str | os.PathLike | None = None,
    generator_config: Sequence[str] = ("inference.json",),
    generator_settings: Mapping[str, Any] | None = None,
    num_sampled: int = 100,
    num_sampled_held_out: int = 10,
    seed: int = 0,
    axcodes: str = "RAS",
    device: torch.device | str = "cpu",
) -> TrainingVolumes:
    """Volumes to train on and to validate with.

    Without a generator both are files. With one, training samples; validation reads the files of ``dataset_dir``, or
    samples volumes of epoch 0, in which nothing trains, if there is none.

    Args:
        find_files: gives the folder of the files; called only if files are used, since it may draw a cohort.
        dataset_dir: the user's folder, or None.
        num_training: of the files of the training split, the first by case id; None: all.
        generator: folder of the ``*_ldm`` bundle to sample from; None: files alone.
        generator_config: its configurations, as for :class:`~medical_diffusion_components.data.VolumeSampler`.
        generator_settings: id -> value, what differs from them.
        num_sampled: volumes per epoch.
        num_sampled_held_out: volumes to validate with.
        seed: with epoch and index it fixes a sampled volume.
        axcodes: where H, W and D point in the patient.
        device: where to sample.

    Raises:
        FileNotFoundError, ValueError: as ``find_files``, ``load_cases`` and ``VolumeSampler`` raise them, or more volumes
            were asked for than there are.
    """
    if not generator:
        return _files(find_files(), dataset_dir, num_training, axcodes)
    sampler = VolumeSampler(generator, generator_config, generator_settings, device)
    training = SampledVolumes(sampler, num_sampled, seed, axcodes)
    if dataset_dir is None:
        held_out = SampledVolumes(sampler, num_sampled_held_out, seed, axcodes)
        return TrainingVolumes(training, held_out, sampler.spacing(axcodes), describe_sampling(sampler))
    files = _files(find_files(), dataset_dir, num_training, axcodes)
    return files._replace(training=training, made_from=describe_sampling(sampler, dataset_dir))


def _files(folder: str, dataset_dir: str | None, num_training: int | None, axcodes: str) -> TrainingVolumes:
    cases = load_cases(folder, "training")
    if num_training is not None and num_training > len(cases):
        raise ValueError(
            f"expected at most {len(cases)} as num_training_volumes, which {folder} has; got {num_training}"
        )
    spacing = list(median_spacing(cases, axcodes))
    return TrainingVolumes(
        cases[:num_training], load_cases(folder, "validation"), spacing, describe_data(dataset_dir, folder)
    )
