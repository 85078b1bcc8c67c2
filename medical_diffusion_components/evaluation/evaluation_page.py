"""The page of an evaluation: which volumes it shows, and why those."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from medical_diffusion_components.chance import numpy_generator
from medical_diffusion_components.evaluation.report import headline
from medical_diffusion_components.metrics.neighbours import distances
from medical_diffusion_components.reports.page import Gallery, PageCase, PageVolume, write_page

__all__ = ["EvaluationPage"]

Cases = Sequence[Mapping[str, Any]]
REAL = (
    "This page holds training and held-out volumes. If they are of patients, it is to be handled as they are: it may be "
    "shown only to those who may see them."
)
BUDGET = 48 * 64**3  # voxels on the page: about 7 MB when packed
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
    """

    def __init__(
        self,
        path: str | Path,
        title: str,
        spacing: Sequence[float] = (1.0, 1.0, 1.0),
        axcodes: str = "RAS",
        curves: Sequence[str | Path] = (),
        notice: str | None = None,
    ) -> None:
        self.path = Path(path)
        self.title = title
        self.spacing = spacing
        self.axcodes = axcodes
        self.curves = [Path(folder) for folder in curves]
        self.notice = notice

    def __call__(
        self,
        report: Mapping[str, Any],
        cases: Mapping[str, Cases],
        anatomy: Mapping[str, np.ndarray],
        read: Callable[[Mapping[str, Any]], Tensor],
        seed: int = 0,
    ) -> Path:
        """Write the page.

        Args:
            report: content of ``evaluation.json``.
            cases: set -> cases: ``synthetic``, ``reference``, ``training``, and ``reconstructions`` if there are.
            anatomy: set -> (N, F), features by which the nearest volume is found.
            read: case -> volume (C, H, W, D) in [-1, 1].
            seed: of the random choice.
        """

        shown = _Shown(cases, anatomy, read, seed)
        galleries = [shown.samples(), shown.closest()]
        if "reconstructions" in cases:
            galleries.append(shown.reconstructions())
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
        )

    def _curves(self) -> dict[str, tuple[list[float], list[float]]]:
        found = {}
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
    ) -> None:
        self.cases = cases
        self.read = read
        self.seed = seed
        self.to_training = distances(anatomy["synthetic"], anatomy["training"])
        self.to_held_out = distances(anatomy["synthetic"], anatomy["reference"])
        self.share = min(1.0, BUDGET / (self.volume("", "synthetic", 0).array.size * (3 * RANDOM + 2 * CLOSEST)))

    def samples(self) -> Gallery:
        chosen = numpy_generator(self.seed, 3).permutation(len(self.to_training))[: max(2, round(RANDOM * self.share))]
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
