"""The page of an evaluation: which volumes it shows, and why those."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from medical_diffusion_components.chance import numpy_generator
from medical_diffusion_components.evaluation.copies import AuditedPair
from medical_diffusion_components.evaluation.obedience import Points
from medical_diffusion_components.evaluation.obedience_report import obedience_section
from medical_diffusion_components.evaluation.report import headline
from medical_diffusion_components.evaluation.volume_sets import folder_cases
from medical_diffusion_components.metrics.neighbours import distances
from medical_diffusion_components.orientation import world_axes
from medical_diffusion_components.pages.page import (
    Gallery,
    PageCase,
    PageRow,
    PageVolume,
    length_on_page,
    table_section,
    write_page,
)

__all__ = ["EvaluationPage"]

Cases = Sequence[Mapping[str, Any]]
REAL = (
    "This page holds training and held-out volumes. If they are of patients, it is to be handled as they are: it may be "
    "shown only to those who may see them."
)
# bytes of volumes on the page, unless the fewest cases take more already; with all else it stays below 10 MB
BUDGET = 8.5e6
RANDOM, CLOSEST, RECONSTRUCTED = 8, 12, 4  # cases of each gallery, at most


class EvaluationPage:
    """Writes ``evaluation.html`` beside the numbers.

    Samples are drawn at random, by the evaluation's seed: nobody picks the good ones. No name of a case is shown.

    Args:
        path: of the page.
        title: its heading.
        spacing: mm per voxel along H, W, D.
        axcodes: where H, W and D point in the patient.
        curves: folders of TensorBoard logs of the training; those that are not there are left out.
        notice: what every reader must know, such as what the model was trained on; without one, the page says that it
            holds real volumes.
        compare_dir: folder of another generator's volumes, for a row of pictures; None for none.

    Raises:
        FileNotFoundError: no volume in ``compare_dir``.
    """

    def __init__(
        self,
        path: str | Path,
        title: str,
        spacing: Sequence[float] = (1.0, 1.0, 1.0),
        axcodes: str = "RAS",
        curves: Sequence[str | Path] = (),
        notice: str | None = None,
        compare_dir: str | Path | None = None,
    ) -> None:
        self.path = Path(path)
        self.title = title
        self.spacing = spacing
        self.axcodes = axcodes
        self.left_right = [where.axis for where in world_axes(axcodes)].index(0)  # which of H, W and D
        self.curves = [Path(folder) for folder in curves]
        self.notice = notice
        self.compare_dir = Path(compare_dir) if compare_dir else None
        self.compared = folder_cases(self.compare_dir) if self.compare_dir else []

    def __call__(
        self,
        report: Mapping[str, Any],
        cases: Mapping[str, Cases],
        anatomy: Mapping[str, np.ndarray],
        read: Callable[[Mapping[str, Any]], Tensor],
        seed: int = 0,
        pairs: Sequence[AuditedPair] = (),
        points: Points | None = None,
        by_condition: Mapping[str, Any] | None = None,
    ) -> Path:
        """Write the page.

        Args:
            report: content of ``evaluation.json``.
            cases: set -> cases: ``synthetic``, ``reference``, ``training``, and ``reconstructions`` if there are.
            anatomy: set -> (N, F), features by which the nearest volume is found.
            read: case -> volume (C, H, W, D) in [-1, 1].
            seed: of the random choice.
            pairs: the closest ones of a copy audit, which take the place of those whose anatomy is nearest.
            points: asked and measured, of :class:`~medical_diffusion_components.evaluation.Obedience`.
            by_condition: of a copy audit, as ``audit_headline`` gives it.
        """
        if self.compared:
            cases = {**cases, "compared": self.compared}
        shown = _Shown(cases, anatomy, read, seed, self.left_right)
        galleries = [shown.samples(), shown.audited(pairs) if pairs else shown.closest()]
        if "reconstructions" in cases:
            galleries.append(shown.reconstructions())
        sections = [obedience_section(report["obedience"], points)] if points else []
        if by_condition is not None:
            header, *rows = by_condition["table"]
            sections.append(table_section("Copies by condition", by_condition["text"], header, rows))
        return write_page(
            self.path,
            self.title,
            headline(report),
            report,
            galleries,
            self.spacing,
            self.axcodes,
            self._curves(),
            [self.notice or REAL],
            shown.rows(self.compare_dir.name.replace("_", " ") if self.compare_dir else ""),
            sections=sections,
        )

    def _curves(self) -> dict[str, tuple[list[float], list[float]]]:
        found = {}
        logging.getLogger("tensorboard").setLevel(logging.WARNING)  # it says of every file that it has come to its end
        for folder in self.curves:
            if not any(folder.rglob("events*")):
                continue
            events = EventAccumulator(str(folder)).Reload()
            for tag in events.Tags()["scalars"]:
                points = events.Scalars(tag)
                found[f"{folder.parent.name}: {tag}"] = ([p.step for p in points], [p.value for p in points])
        return found


class _Shown:
    """Chooses the volumes of each gallery, fewer of large ones."""

    def __init__(
        self,
        cases: Mapping[str, Cases],
        anatomy: Mapping[str, np.ndarray],
        read: Callable[[Mapping[str, Any]], Tensor],
        seed: int,
        left_right: int,
    ) -> None:
        self.left_right = left_right
        self.cases = cases
        self.read = read
        self.seed = seed
        self.to_training = distances(anatomy["synthetic"], anatomy["training"])
        self.to_held_out = distances(anatomy["synthetic"], anatomy["reference"])
        lengths = [length_on_page(self.volume("", some, 0)) for some in ("synthetic", "reference")]
        most = 3 * RANDOM + 2 * CLOSEST + 2 * RECONSTRUCTED  # volumes
        self.share = min(1.0, BUDGET / (most * sum(lengths) / len(lengths)))

    def chosen(self, some: str) -> list[int]:
        """Volumes of a set, drawn at random."""
        drawn = numpy_generator(self.seed, 3).permutation(len(self.cases[some]))
        return drawn[: max(2, round(RANDOM * self.share))].tolist()

    def rows(self, compared: str) -> list[PageRow]:
        """Samples above held-out volumes, and what they are compared with in between."""
        names = {
            "synthetic": "samples",
            "compared": f"compared with: {compared}",
            "baseline": "samples of the baseline",
            "reference": "held-out volumes",
        }
        return [
            PageRow(name, [self.volume(name, some, number) for number in self.chosen(some)])
            for some, name in names.items()
            if some in self.cases
        ]

    def samples(self) -> Gallery:
        chosen = self.chosen("synthetic")
        cases = []
        for place, number in enumerate(chosen):
            held_out = int(self.to_held_out[number].argmin())
            pair = [*self.pair(number), self.volume("nearest held-out volume", "reference", held_out)]
            cases.append(PageCase(f"sample {place + 1}", pair))
        return Gallery(
            "Samples",
            f"{len(chosen)} of {len(self.to_training)} synthetic volumes, chosen at random (seed {self.seed}), each beside "
            "the training volume and the held-out volume whose anatomy is nearest.",
            cases,
        )

    def closest(self) -> Gallery:
        nearest = self.to_training.min(1)
        chosen = np.argsort(nearest, kind="stable")[: max(2, round(CLOSEST * self.share))]
        return Gallery(
            "Closest to a training volume",
            "The synthetic volumes whose anatomy is nearest to a training volume's. Near is not copied: whether one is a "
            "copy is for the copy audit to say.",
            [
                PageCase(f"pair {place + 1}", self.pair(number), f"distance {nearest[number]:.3g}")
                for place, number in enumerate(chosen)
            ],
        )

    def audited(self, pairs: Sequence[AuditedPair]) -> Gallery:
        cases = []
        for place, pair in enumerate(pairs[: max(2, round(CLOSEST * self.share))]):
            ours, theirs = (self.read(case)[0].numpy() for case in (pair.synthetic, pair.training))
            mirrored = np.flip(theirs, self.left_right)
            if abs(ours - mirrored).mean() < abs(ours - theirs).mean():
                nearest = PageVolume("nearest training volume, mirrored", mirrored)
            else:
                nearest = PageVolume("nearest training volume", theirs)
            cases.append(PageCase(f"pair {place + 1}", [PageVolume("synthetic", ours), nearest], pair.text, True))
        return Gallery(
            "Closest to a training volume",
            "The pairs that the copy audit found most similar, and their difference: grey where both are the same. "
            "No copy found is not the same as anonymous.",
            cases,
        )

    def reconstructions(self) -> Gallery:
        count = min(max(1, round(RECONSTRUCTED * self.share)), len(self.cases["reference"]))
        return Gallery(
            "Held-out volumes and their reconstructions",
            "What the first stage keeps of a volume bounds what the generator can make.",
            [
                PageCase(
                    f"held-out {number + 1}",
                    [
                        self.volume("held out", "reference", number),
                        self.volume("reconstruction", "reconstructions", number),
                    ],
                )
                for number in range(count)
            ],
        )

    def pair(self, number: int) -> list[PageVolume]:
        nearest = int(self.to_training[number].argmin())
        return [
            self.volume("synthetic", "synthetic", number),
            self.volume("nearest training volume", "training", nearest),
        ]

    def volume(self, name: str, some: str, number: int) -> PageVolume:
        return PageVolume(name, self.read(self.cases[some][number])[0].numpy())
