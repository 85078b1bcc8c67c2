"""Volumes as the audit compares them: read from files, preprocessed as for training, reduced, kept on disk.

Real, reconstructed and synthetic volumes are all read from NIfTI files by one preprocessing: a difference between
files and tensors in memory would otherwise look like one between real and synthetic.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from medical_diffusion_components.audit.views import reduce_volumes
from medical_diffusion_components.chance import seed_of_name
from medical_diffusion_components.files import file_hash, write_atomically
from medical_diffusion_components.transforms.scale_as_prepared import WRITTEN, fixed_scale, scale_facts

__all__ = [
    "AuditedVolumes",
    "Preprocessing",
    "case_key",
    "kept",
    "one_case_per_patient",
    "one_place_per_patient",
    "read_volumes",
]


class Preprocessing(NamedTuple):
    """How files become volumes."""

    # {"image": path, "case_id": ...} -> {"image": (C, H, W, D) in [-1, 1], ...}
    transform: Callable[[Mapping], Mapping]
    text: str  # describes it; part of every cache's key

    def volume(self, case: Mapping) -> Tensor:
        """(C, H, W, D) in [-1, 1], float32."""
        return torch.as_tensor(self.transform(case)["image"]).float()

    def as_written(self, case: Mapping) -> Tensor:
        """The same of a file that a first stage wrote, with its intensities as they are: not stretched to [-1, 1]."""
        return self.volume({**scale_facts(WRITTEN, WRITTEN), **case})


class AuditedVolumes(NamedTuple):
    """A set of volumes."""

    cases: list[dict]  # image (path), case_id, patient_id
    hashes: list[str]  # SHA-256 of the files
    reduced: Tensor  # (N, C, h, w, d) in [-1, 1]

    @property
    def groups(self) -> Tensor:
        """(N,) the same integer for volumes of one patient."""
        patients = [case["patient_id"] for case in self.cases]
        numbers = {patient: number for number, patient in enumerate(dict.fromkeys(patients))}
        return torch.tensor([numbers[patient] for patient in patients])


def one_case_per_patient(cases: Sequence[dict]) -> list[dict]:
    """One case of each patient, in the order of the case ids; see :func:`one_place_per_patient`."""
    return sorted((cases[place] for place in one_place_per_patient(cases)), key=lambda case: case["case_id"])


def one_place_per_patient(cases: Sequence[dict]) -> list[int]:
    """Where one case of each patient stands, chosen by a hash of its id: not always the first scan or the left side."""
    chosen: dict[str, int] = {}
    for place in sorted(range(len(cases)), key=lambda place: seed_of_name(cases[place]["case_id"])):
        chosen.setdefault(cases[place]["patient_id"], place)
    return list(chosen.values())


def read_volumes(
    cases: Sequence[dict], preprocessing: Preprocessing, folder: str | Path, description: str
) -> AuditedVolumes:
    """Read, preprocess and reduce the volumes of ``cases``, those that an earlier call did not keep in ``folder``.

    Args:
        cases: with ``image``, ``case_id`` and ``patient_id``.
        preprocessing: for all sets the same.
        folder: of the cache, a file per volume, named by the hash of the volume's file and of the preprocessing.
        description: in front of the progress bar.

    Raises:
        ValueError: no cases, volumes of unlike sizes, or a damaged file in the cache.
        VolumeError: a file that the preprocessing refuses; the message names it.
    """
    if not cases:
        raise ValueError(f"{description}: expected volumes, found none")
    hashes, volumes = [], []
    for case in tqdm(cases, desc=description, unit="volume"):
        hashes.append(file_hash(case["image"]))
        said = case_key(case, preprocessing, hashes[-1])
        volumes.append(kept(Path(folder), said, partial(_reduced, case, preprocessing)))
    shapes = {volume.shape for volume in volumes}
    if len(shapes) > 1:
        raise ValueError(f"{description}: expected volumes of one size, got the sizes {sorted(shapes)} after reduction")
    return AuditedVolumes(list(cases), hashes, torch.from_numpy(np.stack(volumes)))


def case_key(case: Mapping, preprocessing: Preprocessing, digest: str | None = None) -> list[str]:
    """What a preprocessed volume follows from.

    Args:
        case: with ``image``.
        preprocessing: of it.
        digest: SHA-256 of its file, where it is known already.
    """
    return [digest or file_hash(case["image"]), preprocessing.text, json.dumps(fixed_scale(case))]


def kept(folder: Path, made_from: Sequence[Any], make: Callable[[], np.ndarray]) -> np.ndarray:
    """The array that ``make`` returns, from the file in ``folder`` that an earlier call with the same facts has left.

    Raises:
        ValueError: a damaged file.
    """
    path = folder / f"{hashlib.sha256(json.dumps(list(made_from)).encode()).hexdigest()[:24]}.npy"
    if not path.is_file():
        write_atomically(path, partial(_save, make()))
    return _load(path)


def _reduced(case: Mapping, preprocessing: Preprocessing) -> np.ndarray:
    return reduce_volumes(preprocessing.volume(case)[None])[0].numpy()


def _save(array: np.ndarray, path: Path) -> None:
    with open(path, "wb") as file:  # given a name, NumPy would add .npy to it
        np.save(file, array)


def _load(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is not a cached volume ({error}): delete it, and it is made again") from error
