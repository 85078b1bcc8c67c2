"""A note beside segmentations: from what they were made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events

from medical_diffusion_components.files import write_json
from medical_diffusion_components.weights import made_with

__all__ = ["SegmentationNote"]


class SegmentationNote:
    """Attached to an evaluator, write ``segmentations.json`` when all volumes are segmented.

    Args:
        folder: where the segmentations are.
        weights: file of the network's weights, for its hash and its note.
        classes: name -> value in the segmentations.
        volumes: the cases that were segmented, for their number.
        facts: what else goes into the note.
    """

    def __init__(
        self,
        folder: str | Path,
        weights: str | Path,
        classes: Mapping[str, int],
        volumes: Sequence[Any],
        facts: Mapping[str, Any],
    ) -> None:
        self.folder = Path(folder)
        self.weights = Path(weights)
        self.classes = dict(classes)
        self.volumes = volumes
        self.facts = dict(facts)

    def attach(self, evaluator: Engine) -> None:
        evaluator.add_event_handler(Events.COMPLETED, self)

    def __call__(self, evaluator: Engine) -> None:
        note = {"volumes": len(self.volumes), "classes": self.classes, **self.facts, **made_with(self.weights)}
        write_json(self.folder / "segmentations.json", note)
        print(f"wrote {len(self.volumes)} segmentations to {self.folder}", flush=True)
