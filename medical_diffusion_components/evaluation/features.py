"""Features of the volumes in files, computed once for each file and kept by its hash."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from medical_diffusion_components.distributed import gathered, share
from medical_diffusion_components.evaluation.feature_space import FeatureSpace
from medical_diffusion_components.evaluation.slice_continuity import slice_correlations
from medical_diffusion_components.evaluation.spectrum import power_along, radial_power
from medical_diffusion_components.files import file_hash, write_atomically
from medical_diffusion_components.metrics.intensity import intensity_quantiles
from medical_diffusion_components.threads import one_thread
from medical_diffusion_components.transforms.scale_as_prepared import fixed_scale

__all__ = ["FeatureReader"]

AT_ONCE = 8  # cases that an executor's worker gets


class FeatureReader:
    """Reads volumes as a bundle does and describes each by vectors.

    Beside the spaces there are, for every volume, ``continuity_0..2`` (correlations of neighbouring slices across H, W,
    D), ``power_0..2`` (power along the axes), ``radial`` (power by spatial frequency) and ``quantiles`` (of intensity).
    Under torchrun every process computes its share; given an executor (processes, Dask), its workers do.

    Args:
        preprocessing: {"image": path, "case_id": ...} -> {"image": (C, H, W, D) in [-1, 1], ...}.
        text: describes the preprocessing; part of the cache's key.
        spaces: name -> volume (C, H, W, D) to (F,), with a ``description``.
        cache: folder of the features, a file for each volume and set of spaces.
    """

    def __init__(
        self,
        preprocessing: Callable[[Mapping[str, Any]], Mapping[str, Any]],
        text: str,
        spaces: Mapping[str, FeatureSpace],
        cache: str | Path,
    ) -> None:
        self.preprocessing = preprocessing
        self.spaces = dict(spaces)
        self.cache = Path(cache)
        described = {name: space.description for name, space in self.spaces.items()}
        self.key = hashlib.sha256(json.dumps([text, described], sort_keys=True).encode()).hexdigest()

    def volume(self, case: Mapping[str, Any]) -> torch.Tensor:
        """The preprocessed volume, (C, H, W, D) in [-1, 1]."""
        known = {"image": case["image"], "case_id": case["case_id"], **fixed_scale(case)}
        image = self.preprocessing(known)["image"]
        return torch.as_tensor(image).float()

    def check(self, cases: Sequence[Mapping[str, Any]], description: str) -> None:
        """Read every volume whose features are not there yet, so that what cannot be read is refused before all else.

        Raises:
            VolumeError: a file that cannot be read; the message names it.
        """
        unknown = [case for case in share(cases) if not self._file(case).is_file()]
        for case in tqdm(unknown, desc=description, unit="volume", disable=not unknown):
            self.volume(case)
        gathered(None)

    def __call__(
        self, cases: Sequence[Mapping[str, Any]], description: str, executor: Executor | None = None
    ) -> dict[str, np.ndarray]:
        """Vectors of every case, name -> (N, F), in the order of ``cases``.

        Args:
            cases: with ``image`` (path) and ``case_id``.
            description: in front of the progress bar.
            executor: whose workers compute; None: this process, or all processes of torchrun.

        Raises:
            VolumeError: a file that cannot be read; the message names it.
        """
        todo = [case for case in cases if not self._file(case).is_file()]
        gathered(None)  # all processes have looked before one writes, so that they share one and the same list
        mine = share(todo)
        with tqdm(desc=description, total=len(mine), unit="volume", disable=not mine) as progress:
            counts: Iterator[int]
            if executor is None:
                counts = (self._compute([case]) for case in mine)
            else:  # a few cases at a time: the networks travel along
                counts = executor.map(self._compute, [mine[i : i + AT_ONCE] for i in range(0, len(mine), AT_ONCE)])
            for count in counts:
                progress.update(count)
        gathered(None)  # every process waits until all have written theirs
        loaded = [self._load(self._file(case)) for case in cases]
        return {name: np.stack([one[name] for one in loaded]) for name in loaded[0]}

    def _file(self, case: Mapping[str, Any]) -> Path:
        scale = json.dumps(fixed_scale(case)) if fixed_scale(case) else ""
        key = hashlib.sha256(f"{file_hash(case['image'])}{self.key}{scale}".encode()).hexdigest()
        return self.cache / f"{key[:32]}.npz"

    def _compute(self, cases: Sequence[Mapping[str, Any]]) -> int:
        for case in cases:
            self._compute_one(case)
        return len(cases)

    def _compute_one(self, case: Mapping[str, Any]) -> None:
        with one_thread():
            volume = self.volume(case)
            found = {name: space(volume).astype(np.float32) for name, space in self.spaces.items()}
        array = volume.mean(0).numpy()
        for axis in range(3):
            found[f"continuity_{axis}"] = slice_correlations(array, axis)
            found[f"power_{axis}"] = power_along(array, axis)
        found["radial"] = radial_power(array)
        found["quantiles"] = intensity_quantiles(array)

        def save(path: Path) -> None:
            with open(path, "wb") as file:
                np.savez(file, **found)

        write_atomically(self._file(case), save)

    @staticmethod
    def _load(path: Path) -> dict[str, np.ndarray]:
        try:
            with np.load(path, allow_pickle=False) as file:
                return {name: file[name].astype(np.float64) for name in file.files}
        except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} holds no features ({error}): delete it, and it is made again") from error
