"""Draw volumes until enough have passed the audit; killed at any time and run again, only what is missing is drawn."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from medical_diffusion_components.audit import ReleaseFilter
from medical_diffusion_components.data.datasets import nifti_files
from medical_diffusion_components.data.volume_notes import note_path
from medical_diffusion_components.dataset_release.facts import ReleaseError
from medical_diffusion_components.distributed import gathered, process_rank, share
from medical_diffusion_components.files import write_json
from medical_diffusion_components.workflow.run_settings import changes

__all__ = ["Draws", "RecordingFilter"]

WITHHELD = "withheld"  # folder of records
SETTINGS = "drawn_with.json"


class RecordingFilter(ReleaseFilter):
    """A release filter that remembers what it withheld, so that nobody draws it again.

    Args:
        record: folder, in which an empty record named after the volume is left.
        others: those of the release filter.
    """

    def __init__(self, record: str | Path, **others: Any) -> None:
        super().__init__(**others)
        self.record = Path(record)

    def __call__(self, path: Path) -> dict[str, Any] | None:
        found = super().__call__(path)
        if found is None:
            write_json(self.record / note_path(path).name, {"verdict": "withheld"})
        return found


class Draws:
    """The volumes of a folder, drawn by ``inference.json`` with one group of settings.

    Args:
        folder: where they are.
        settings: id -> value, of all that they depend on; a folder of other settings is refused.
        seed: of the first volume; the others follow.
        output_format: ``nifti`` or ``dicom``.

    Raises:
        ReleaseError: the folder was drawn with other settings, or holds volumes that no release drew.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any], seed: int, output_format: str) -> None:
        self.folder = Path(folder)
        self.seed = seed
        self.output_format = output_format
        settings = json.loads(json.dumps(dict(settings), default=str))
        file = self.folder / SETTINGS
        if file.is_file():
            if changed := changes(json.loads(file.read_text()), settings):
                raise ReleaseError(f"{self.folder} was drawn with other settings: {changed}. Give another samples_dir")
        elif self.folder.is_dir() and (found := nifti_files(self.folder)):
            raise ReleaseError(
                f"{self.folder} holds volumes that no release drew, such as {found[0].name}: give another"
            )
        gathered(None)  # all processes have looked before one writes
        if process_rank() == 0:
            write_json(file, settings)

    def volume(self, number: int) -> Path:
        """Where a volume lies: a file, or the folder of a DICOM series."""
        stem = f"synthetic_{self.seed + number:06d}"
        return self.folder / (stem if self.output_format == "dicom" else f"{stem}.nii.gz")

    def note(self, number: int) -> dict[str, Any]:
        """The note of a volume.

        Raises:
            ReleaseError: it is damaged.
        """
        path = note_path(self.volume(number))
        try:
            return json.loads(path.read_text())
        except ValueError as error:
            raise ReleaseError(f"{path} is damaged ({error}): remove it, and its volume is drawn again") from error

    def is_there(self, number: int) -> bool:
        volume = self.volume(number)
        return volume.exists() and note_path(volume).is_file()

    def is_withheld(self, number: int) -> bool:
        return (self.folder / WITHHELD / note_path(self.volume(number)).name).is_file()

    def fill_up(self, wanted: int, max_draws: int, run: Callable[[dict[str, Any]], None], filtering: bool) -> list[int]:
        """Draw until ``wanted`` volumes are there; every process calls this.

        Args:
            wanted: how many volumes.
            max_draws: so many times as many may be drawn, when the audit may withhold some.
            run: runs ``inference.json`` with these overrides.
            filtering: whether the audit judges each volume.

        Returns:
            numbers of the first ``wanted`` that are there.

        Raises:
            ValueError: too few were released.
        """
        numbers = range(wanted * max_draws if filtering else wanted)
        found = [number for number in numbers if self.is_there(number)]
        pending = [number for number in numbers if not (self.is_there(number) or self.is_withheld(number))]
        missing = wanted - len(found)
        gathered(None)
        if missing > 0:
            if not pending:
                raise ReleaseError(
                    f"expected {wanted} released volumes, got {len(found)} of {len(numbers)} drawn: the generator copies "
                    "too much, see the audit's report; or allow more draws with max_draws"
                )
            run({"num_volumes": missing, "dataset::data": share([{"image": number} for number in pending])})
            gathered(None)
        return [number for number in numbers if self.is_there(number)][:wanted]

    def drawn(self, released: list[int]) -> int:
        """How many volumes were judged until the last of ``released``."""
        return len(released) + sum(self.is_withheld(number) for number in range(max(released)))
