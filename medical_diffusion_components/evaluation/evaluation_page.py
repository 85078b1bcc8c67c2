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
BUDGET = 40 * 64**3  # voxels on the page: about 7 MB when packed
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
        notice: what every reader must know, such as what the model was trained on.
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

        def volume(name: str, some: str, number: int) -> PageVolume:
            return PageVolume(name, read(cases[some][number])[0].numpy())

        voxels = int(np.prod(volume("", "synthetic", 0).array.shape))
        share = min(1.0, BUDGET / (voxels * (2 * RANDOM + 2 * CLOSEST)))
        to_training = distances(anatomy["synthetic"], anatomy["training"])
        chosen = numpy_generator(seed, 3).permutation(len(to_training))[: max(2, round(RANDOM * share))]
        closest = np.argsort(to_training.min(1), kind="stable")[: max(2, round(CLOSEST * share))]

        def beside(number: int) -> list[PageVolume]:
            nearest = int(to_training[number].argmin())
            return [volume("synthetic", "synthetic", number), volume("nearest training volume", "training", nearest)]

        galleries = [
            Gallery(
                "Samples",
                f"{len(chosen)} of {len(to_training)} synthetic volumes, chosen at random (seed {seed}), each beside the "
                "training volume whose anatomy is nearest.",
                [PageCase(f"sample {place + 1}", beside(number)) for place, number in enumerate(chosen)],
            ),
            Gallery(
                "Closest to a training volume",
                "The synthetic volumes whose anatomy is nearest to a training volume's. Near is not copied: whether one "
                "is a copy is for the copy audit to say.",
                [
                    PageCase(f"pair {place + 1}", beside(number), f"distance {to_training[number].min():.3g}")
                    for place, number in enumerate(closest)
                ],
            ),
        ]
        if "reconstructions" in cases:
            galleries.append(
                Gallery(
                    "Held-out volumes and their reconstructions",
                    "What the first stage keeps of a volume bounds what the generator can make.",
                    [
                        PageCase(
                            f"held-out {number + 1}",
                            [
                                volume("held out", "reference", number),
                                volume("reconstruction", "reconstructions", number),
                            ],
                        )
                        for number in range(min(max(1, round(RECONSTRUCTED * share)), len(cases["reference"])))
                    ],
                )
            )
        notices = [self.notice] if self.notice else []
        return write_page(
            self.path,
            self.title,
            headline(report),
            report,
            galleries,
            self.spacing,
            self.axcodes,
            self._curves(),
            notices,
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
