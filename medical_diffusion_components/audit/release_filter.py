"""Judge synthetic volumes as they are written, with the test that an audit has left."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from medical_diffusion_components.audit.copy_audit import FILTER_FILE
from medical_diffusion_components.audit.copy_test import CopyTest
from medical_diffusion_components.audit.views import reduce_volumes
from medical_diffusion_components.audit.volumes import Preprocessing
from medical_diffusion_components.files import file_hash

__all__ = ["ReleaseFilter"]


class ReleaseFilter:
    """Whether a written volume is released, and what its note says.

    The volume is read from its file as the audit reads it. The level of the test is the audit's.

    Args:
        folder: of the audit: ``copy_test.pt`` is in it.
        weights: of the generator whose volumes these are.
        transform: the audit's preprocessing.

    Raises:
        WeightsError: no audit was run, or it was of other weights.
    """

    def __init__(self, folder: str | Path, weights: str | Path, transform: Callable[[Mapping], Mapping]) -> None:
        self.preprocessing = Preprocessing(transform, "")
        self.test = CopyTest.load(Path(folder) / FILTER_FILE, file_hash(weights))

    def __call__(self, path: Path) -> tuple[bool, Mapping[str, Any]]:
        volume = self.preprocessing.volume({"image": str(path), "case_id": path.name})
        verdict = self.test.verdicts(reduce_volumes(volume[None]))[0]
        return verdict.verdict == "released", verdict.note()
