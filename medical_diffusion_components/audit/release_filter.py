"""Judge synthetic volumes as they are written, with the test that an audit has left."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medical_diffusion_components.audit.copy_audit import FILTER_FILE
from medical_diffusion_components.audit.copy_test import NOT_ANONYMOUS, CopyTest
from medical_diffusion_components.audit.views import reduce_volumes
from medical_diffusion_components.audit.volumes import Preprocessing
from medical_diffusion_components.data.volume_notes import note_path
from medical_diffusion_components.distributed import gathered, process_rank, share
from medical_diffusion_components.files import file_hash
from medical_diffusion_components.transforms.scale_as_prepared import fixed_scale

__all__ = ["ReleaseFilter"]


class ReleaseFilter:
    """Which written volumes are released, what their notes say, and whether there are enough.

    A volume is read from its file as the audit reads it. The level of the test is the audit's.

    Args:
        folder: of the audit: ``copy_test.pt`` is in it.
        weights: of the generator whose volumes these are.
        transform: the audit's preprocessing.
        num_released: how many volumes all processes together are to release.

    Raises:
        WeightsError: no audit was run, or it was of other weights.
    """

    def __init__(
        self,
        folder: str | Path,
        weights: str | Path,
        transform: Callable[[Mapping], Mapping],
        num_released: int,
    ) -> None:
        self.preprocessing = Preprocessing(transform, "")
        self.test = CopyTest.load(Path(folder) / FILTER_FILE, file_hash(weights))
        self.num_released = int(num_released)
        self.withheld = 0  # by this process

    def __call__(self, path: Path) -> dict[str, Any] | None:
        """What the note of the volume at ``path`` says about it; None if it is withheld."""
        scale = fixed_scale(json.loads(note_path(path).read_text()))
        volume = self.preprocessing.volume({"image": str(path), "case_id": path.name, **scale})
        verdict = self.test.verdicts(reduce_volumes(volume[None]))[0]
        if verdict.verdict != "released":
            self.withheld += 1
            return None
        return verdict.note()

    def enough(self, released: Sequence[Path]) -> bool:
        """Whether this process has released its share."""
        return len(released) >= len(share(range(self.num_released)))

    def report(self, released: int) -> None:
        """Say how many volumes were withheld; every process calls this, the first one speaks.

        Args:
            released: volumes that all processes have released.

        Raises:
            ValueError: fewer were released than were asked for.
        """
        withheld = sum(gathered(self.withheld))
        drawn = released + withheld
        if process_rank() == 0:
            print(f"released {released} of {drawn} volumes, withheld {withheld}. {NOT_ANONYMOUS}", flush=True)
        if released < self.num_released:
            raise ValueError(
                f"expected {self.num_released} released volumes, got {released} of {drawn} drawn: the generator copies too "
                "much, see the audit's report; or allow more draws with max_draws"
            )
