"""Synthesised masks against those of the training: copies, volumes of the structures, variety."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import ks_2samp
from tqdm import tqdm

from medical_diffusion_components.control.structures import label_maps
from medical_diffusion_components.files import check_writable, markdown_table, versions, write_atomically, write_json
from medical_diffusion_components.pages.page import Gallery, PageCase, PageVolume, table_section, write_page
from medical_diffusion_components.transforms.load_volume import LoadVolume

__all__ = ["MaskEvaluation", "mean_dice", "nearest_masks"]

COLUMNS = ("ml, mean (SD)", "training", "drawn", "held out")


def mean_dice(one: np.ndarray, others: np.ndarray, num_classes: int) -> np.ndarray:
    """Dice of a label map (H, W, D) with each of (N, H, W, D), mean over the classes that either has but the background."""
    rows = []
    for value in range(1, num_classes):
        mine, theirs = one == value, others == value
        total = mine.sum() + theirs.sum((1, 2, 3))
        both = (mine & theirs).sum((1, 2, 3))
        rows.append(np.where(total > 0, 2 * both / np.maximum(total, 1), np.nan))
    table = np.stack(rows)  # (classes, N)
    defined = np.isfinite(table)
    return np.nansum(table, 0) / np.maximum(defined.sum(0), 1)


def nearest_masks(
    masks: Sequence[np.ndarray], training: Iterable[np.ndarray], num_classes: int, flip_axes: Sequence[int] = ()
) -> np.ndarray:
    """The highest mean Dice of each mask with any mask of the training, plain or mirrored, (N,)."""
    stacked, highest = np.stack(masks), np.zeros(len(masks))
    for labels in training:
        for view in [labels, *(np.flip(labels, axis) for axis in flip_axes)]:
            highest = np.maximum(highest, mean_dice(view, stacked, num_classes))
    return highest


class MaskEvaluation:
    """Compares masks and writes ``mask_evaluation.json``, ``.md`` and ``.html``.

    *Copies*: the highest Dice of each drawn mask with any training mask, beside that of held-out masks, which nobody could
    have copied. A drawn mask is named if it is nearer to one than every held-out mask is. *Volumes*: mean and standard
    deviation of each structure, and the largest distance between the distributions (Kolmogorov and Smirnov). *Variety*: the
    mean Dice of two different masks.

    Args:
        drawn: paths of synthesised label maps.
        training: cases with a label map.
        held_out: such cases that no training has seen.
        classes: name -> value.
        folder: where the report goes.
        facts: what else goes into the report, such as hashes.
        image_size: voxels (H, W, D) of all.
        spacing: mm per voxel.
        axcodes: where H, W and D point.
        flip_axes: along which masks were mirrored in training.
        num_shown: masks of each kind on the page.
        notice: what the generator was trained on, for the page.

    Raises:
        ValueError: fewer than two drawn or two held-out masks.
    """

    def __init__(
        self,
        drawn: Sequence[Path],
        training: Sequence[dict],
        held_out: Sequence[dict],
        classes: Mapping[str, int],
        folder: str | Path,
        facts: Mapping[str, Any],
        image_size: Sequence[int],
        spacing: Sequence[float] = (1.0, 1.0, 1.0),
        axcodes: str = "RAS",
        flip_axes: Sequence[int] = (),
        num_shown: int = 6,
        notice: str | None = None,
    ) -> None:
        if min(len(drawn), len(held_out)) < 2:
            raise ValueError(
                f"expected at least two drawn and two held-out masks, got {len(drawn)} and {len(held_out)}"
            )
        self.drawn = list(drawn)
        self.training, self.held_out = list(training), list(held_out)
        self.classes = dict(classes)
        self.folder = Path(folder)
        self.facts = dict(facts)
        self.image_size = list(image_size)
        self.spacing = list(spacing)
        self.axcodes = axcodes
        self.flip_axes = list(flip_axes)
        self.num_shown = num_shown
        self.notice = notice

    def run(self) -> dict[str, Any]:
        """Compare, write the report, and return the content of ``mask_evaluation.json``."""
        check_writable(self.folder)
        load = LoadVolume(self.axcodes)
        drawn = [load(path).as_tensor()[0].numpy().astype(np.uint8) for path in self.drawn]
        held_out = list(label_maps(self.held_out, self.classes, self.axcodes, self.image_size))
        volumes: list[list[float]] = []

        def training() -> Iterable[np.ndarray]:
            maps = label_maps(self.training, self.classes, self.axcodes, self.image_size)
            for labels in tqdm(maps, desc="training masks", total=len(self.training), unit="mask"):
                volumes.append(self._volumes(labels))
                yield labels

        found = nearest_masks([*drawn, *held_out], training(), len(self.classes), self.flip_axes)
        report = {
            **self.facts,
            "masks": {"drawn": len(drawn), "training": len(self.training), "held_out": len(held_out)},
            "nearest_training": self._nearest(found[: len(drawn)], found[len(drawn) :]),
            "volumes_ml": self._compared(
                volumes, [self._volumes(m) for m in drawn], [self._volumes(m) for m in held_out]
            ),
            "dice_of_two": {"drawn": self._variety(drawn), "held_out": self._variety(held_out)},
            "versions": versions(),
        }
        report["sentences"] = _sentences(report)
        write_json(self.folder / "mask_evaluation.json", report)
        text = _markdown(report)
        write_atomically(self.folder / "mask_evaluation.md", lambda temporary: temporary.write_text(text))
        self._page(report, drawn, held_out)
        print(text, flush=True)
        return report

    def _nearest(self, drawn: np.ndarray, held_out: np.ndarray) -> dict[str, Any]:
        near = [path.name for path, dice in zip(self.drawn, drawn) if dice > held_out.max()]
        rows = {"drawn": drawn, "held_out": held_out}
        return {
            **{
                name: {"mean": float(dice.mean()), "sd": float(dice.std(ddof=1)), "most": float(dice.max())}
                for name, dice in rows.items()
            },
            "nearer_than_any_held_out": near,
            "expected_by_chance": len(drawn) / (len(held_out) + 1),
        }

    def _volumes(self, labels: np.ndarray) -> list[float]:
        """ml of each structure."""
        counts = np.bincount(labels.ravel(), minlength=len(self.classes))[1:]
        return (counts * np.prod(self.spacing) / 1000).tolist()

    def _compared(
        self, training: Sequence[Sequence[float]], drawn: Sequence[Sequence[float]], held_out: Sequence[Sequence[float]]
    ) -> dict[str, Any]:
        found: dict[str, Any] = {}
        columns = [np.array(rows).T for rows in (training, drawn, held_out)]  # (structures, N)
        for name, value in self.classes.items():
            if value == 0:
                continue
            of_training, of_drawn, of_held_out = (column[value - 1] for column in columns)
            found[name] = {
                **{
                    kind: {"mean": float(ml.mean()), "sd": float(ml.std(ddof=1)) if len(ml) > 1 else None}
                    for kind, ml in (("training", of_training), ("drawn", of_drawn), ("held_out", of_held_out))
                },
                **{
                    f"distance_of_{kind}": float(ks_2samp(ml, of_training).statistic)
                    for kind, ml in (("drawn", of_drawn), ("held_out", of_held_out))
                },
            }
        return found

    def _variety(self, masks: Sequence[np.ndarray]) -> float:
        """Mean Dice over all pairs."""
        pairs = [mean_dice(one, np.stack(masks[n + 1 :]), len(self.classes)) for n, one in enumerate(masks[:-1])]
        return float(np.mean(list(itertools.chain.from_iterable(pairs))))

    def _page(self, report: Mapping[str, Any], drawn: Sequence[np.ndarray], held_out: Sequence[np.ndarray]) -> None:
        galleries = [
            Gallery(heading, text, self._cases(masks))
            for heading, text, masks in (
                ("Synthesised masks", "As drawn and cleaned.", drawn),
                ("Held-out masks", "For comparison.", held_out),
            )
        ]
        facts = {key: value for key, value in report.items() if key not in ("sentences", "volumes_ml")}
        path, notices = self.folder / "mask_evaluation.html", [self.notice or ""]
        write_page(
            path,
            "Synthesised masks",
            report["sentences"],
            facts,
            galleries,
            self.spacing,
            self.axcodes,
            notices=notices,
            sections=[
                table_section(
                    "Volumes of the structures",
                    "In millilitres, over all masks of a kind.",
                    COLUMNS,
                    _volumes_ml(report),
                )
            ],
        )

    def _cases(self, masks: Sequence[np.ndarray]) -> list[PageCase]:
        top = max(self.classes.values())
        return [
            PageCase(f"{number + 1}", [PageVolume("mask", labels, (0, top))])
            for number, labels in enumerate(masks[: self.num_shown])
        ]


def _sentences(report: Mapping[str, Any]) -> list[str]:
    near, two = report["nearest_training"], report["dice_of_two"]
    number, total = len(near["nearer_than_any_held_out"]), report["masks"]["drawn"]
    said = [
        f"Nearest training mask: Dice {near['drawn']['mean']:.3f} (highest {near['drawn']['most']:.3f}); held-out masks "
        f"{near['held_out']['mean']:.3f} (highest {near['held_out']['most']:.3f}).",
        f"{number} of {total} drawn masks are nearer to a training mask than every held-out mask; "
        f"{near['expected_by_chance']:.1f} are expected by chance.",
        f"Dice of two different masks: drawn {two['drawn']:.3f}, held-out {two['held_out']:.3f}; higher is less variety.",
    ]
    for name, ml in report["volumes_ml"].items():
        said.append(
            f"{name}: {ml['drawn']['mean']:.1f} ml, in training {ml['training']['mean']:.1f} ml; distance of the "
            f"distributions {ml['distance_of_drawn']:.2f}, of held-out masks {ml['distance_of_held_out']:.2f}."
        )
    return said


def _volumes_ml(report: Mapping[str, Any]) -> list[list[str]]:
    """A row for each structure."""
    rows = []
    for name, ml in report["volumes_ml"].items():
        found = [ml[kind] for kind in ("training", "drawn", "held_out")]
        rows.append([name, *(f"{f['mean']:.1f}" + (f" ({f['sd']:.1f})" if f["sd"] is not None else "") for f in found)])
    return rows


def _markdown(report: Mapping[str, Any]) -> str:
    lines = ["# Synthesised masks", "", *(f"- {said}" for said in report["sentences"]), ""]
    lines += markdown_table(COLUMNS, _volumes_ml(report))
    masks = report["masks"]
    return "\n".join(
        [
            *lines,
            "",
            f"{masks['drawn']} drawn, {masks['training']} training and {masks['held_out']} held-out masks.",
            "",
        ]
    )
