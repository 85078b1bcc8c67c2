"""Files that are written for each case: one name a case, and no file of another input is overwritten."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events

from medical_diffusion_components.files import file_hash, write_json
from medical_diffusion_components.transforms.name_output import output_stem

__all__ = ["OutputFiles"]

RECORD = "outputs.json"


class OutputFiles:
    """Attached to an evaluator, check before the first case that every output is free, and record whose it will be.

    ``outputs.json`` in the folder maps each file to the SHA-256 of its input. A file may be written again for the same
    input, as after a change of settings, and for no other.

    Args:
        folder: where the files go.
        cases: with ``image`` (path) and ``case_id``.
        postfixes: one for each result of a case.
        suffixes: one for each form of a result, whose file is called ``<case_id>_<postfix><suffix>``.
    """

    def __init__(
        self,
        folder: str | Path,
        cases: Sequence[Mapping[str, Any]],
        postfixes: Sequence[str],
        suffixes: Sequence[str] = (".nii.gz",),
    ) -> None:
        self.folder = Path(folder)
        self.cases = cases
        self.endings = [f"_{postfix}{suffix}" for postfix in postfixes for suffix in suffixes]

    def attach(self, evaluator: Engine) -> None:
        evaluator.add_event_handler(Events.STARTED, self)

    def __call__(self, evaluator: Engine) -> None:
        """
        Raises:
            ValueError: two cases would have one file, or a file is there that was made from another input.
        """
        record = self.folder / RECORD
        before = json.loads(record.read_text()) if record.is_file() else {}
        inputs: dict[str, str] = {}
        seen: dict[str, str] = {}
        for case in self.cases:
            stem, image = output_stem(case["case_id"]), str(case["image"])
            other = seen.setdefault(stem.casefold(), image)  # some disks do not tell A from a
            if other != image:
                raise ValueError(f"{image} and {other} would both be written as {stem}: rename one of them")
            sha256 = file_hash(image)
            inputs.update({f"{stem}{ending}": sha256 for ending in self.endings})
        for name, sha256 in inputs.items():
            if (self.folder / name).exists() and before.get(name) != sha256:
                made = "from another input" if name in before else f"by what {record} does not say"
                raise ValueError(
                    f"{self.folder / name} is there already, made {made}: give another --output_dir, or move the file away"
                )
        write_json(record, {**before, **inputs})
