"""Whether synthetic volumes hold what their masks asked for: measured by a segmentation that has not seen them.

Dice of the asked mask against the segmentation of the output, beside lines that are measured in the same way: the *ceiling*
is the segmentation of held-out real volumes against their label maps, the *first stage* is the same with these volumes
encoded and decoded, which no mask can improve, and the *floor* compares each synthetic volume with the mask of another.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.inferers import SlidingWindowInferer
from monai.transforms import Compose
from tqdm import tqdm

from medical_diffusion_components.data.splits import SPLITS
from medical_diffusion_components.files import check_writable, markdown_table, versions, write_atomically, write_json
from medical_diffusion_components.networks.scriptable_swin import ScriptableSwinUNETR
from medical_diffusion_components.pages.page import Gallery, PageCase, PageVolume, table_section, write_page
from medical_diffusion_components.reports.segmentation_report import mean_over_patients
from medical_diffusion_components.transforms.load_volume import LoadVolume, LoadVolumed
from medical_diffusion_components.transforms.scale_as_prepared import ScaleAsPreparedd
from medical_diffusion_components.weights import load_weights, provenance

__all__ = ["MaskObedience", "Segmentation", "class_dice", "listed_pairs"]

NEAR = 0.02  # Dice below the ceiling that counts as obeyed
ROWS = ("synthetic", "floor", "first_stage", "ceiling")


class Segmentation:
    """The segmentation of ``swin_unetr_finetune``, built as the note beside its weights says.

    Args:
        weights: its ``model.pt``.
        classes: name -> value of the masks; those of the segmentation must be the same.
        device: where to run.
        overlap: of neighbouring windows, share of the window.

    Raises:
        ValueError: the segmentation knows other classes, or resamples its volumes.
        WeightsError: there are no such weights.
    """

    def __init__(
        self, weights: str | Path, classes: Mapping[str, int], device: torch.device | str = "cpu", overlap: float = 0.5
    ) -> None:
        note = provenance(weights)
        knobs = note.get("knobs", {})
        known = knobs.get("classes", {})
        if Path(weights).is_file() and known != dict(classes):
            raise ValueError(
                f"expected a segmentation of the masks' classes {dict(classes)}, {weights} segments {known}"
            )
        if note.get("resample"):
            raise ValueError(f"{weights} resamples volumes; expected a segmentation on the grid of its volumes")
        network = {
            name: knobs[name] for name in ("feature_size", "depths", "num_heads", "window_size") if name in knobs
        }
        self.weights = Path(weights)
        self.network = ScriptableSwinUNETR(knobs.get("image_channels", 1), len(classes), **network)
        load_weights(self.network, weights)
        self.network.to(device).eval()
        self.device = device
        self.axcodes = knobs["axcodes"]
        self.windows = SlidingWindowInferer(knobs["roi_size"], overlap=overlap, mode="gaussian", cval=-1.0)
        scaling = ScaleAsPreparedd(keys="image", minv=-1.0, maxv=1.0, trained_window=note.get("window"))
        self.transform = Compose([LoadVolumed(keys="image", axcodes=self.axcodes), scaling])

    @torch.no_grad()
    def __call__(self, case: Mapping[str, Any]) -> np.ndarray:
        """The classes (H, W, D) of a case's ``image``, axes as ``axcodes`` says."""
        volume = torch.as_tensor(self.transform(dict(case))["image"])[None].to(self.device)
        return self.windows(volume, self.network)[0].argmax(0).cpu().numpy().astype(np.uint8)


class Judged(NamedTuple):
    """A case that was segmented."""

    case: Mapping[str, Any]
    asked: np.ndarray
    found: np.ndarray


def listed_pairs(pairs_dir: str | Path) -> list[dict]:
    """All pairs of a folder that ``pairs.yaml`` wrote, whatever their split, with absolute paths.

    Raises:
        FileNotFoundError: the folder has no ``dataset.json``.
    """
    path = Path(pairs_dir) / "dataset.json"
    if not path.is_file():
        raise FileNotFoundError(f"expected pairs at {pairs_dir}, but there is no {path}: pairs.yaml draws them")
    content = json.loads(path.read_text())
    return [
        {**entry, **{kind: str(path.parent / entry[kind]) for kind in ("image", "label")}}
        for split in SPLITS
        for entry in content.get(split, [])
    ]


def class_dice(one: np.ndarray, other: np.ndarray, value: int) -> float:
    """Dice's coefficient of a class in two label maps; NaN where neither has it."""
    first, second = one == value, other == value
    total = int(first.sum()) + int(second.sum())
    return 2 * int((first & second).sum()) / total if total else float("nan")


class MaskObedience:
    """Measures obedience and writes ``mask_obedience.json``, ``.md`` and ``.html``.

    Args:
        segment: case -> classes (H, W, D); see :class:`Segmentation`.
        classes: name -> value of the masks.
        pairs: synthetic cases with ``image``, ``label``, ``case_id`` and ``patient_id``, which names the mask.
        real: held-out cases with the same entries, for the ceiling.
        reconstruct: sends cases through the generator's first stage and returns those of the written files.
        folder: where the report goes.
        facts: what else goes into the report, such as hashes.
        spacing: mm per voxel, for the page.
        axcodes: where H, W and D point.
        num_shown: volumes on the page.
        notice: what the generator was trained on, for the page.

    Raises:
        ValueError: no pairs, pairs of one mask alone, which give no floor, or no held-out case.
    """

    def __init__(
        self,
        segment: Callable[[Mapping[str, Any]], np.ndarray],
        classes: Mapping[str, int],
        pairs: Sequence[dict],
        real: Sequence[dict],
        reconstruct: Callable[[Sequence[dict]], list[dict]],
        folder: str | Path,
        facts: Mapping[str, Any],
        spacing: Sequence[float] = (1.0, 1.0, 1.0),
        axcodes: str = "RAS",
        num_shown: int = 6,
        notice: str | None = None,
    ) -> None:
        masks = {case["patient_id"] for case in pairs}
        if len(masks) < 2 or not real:
            raise ValueError(
                f"expected pairs of at least two masks and a held-out case, got {len(pairs)} pairs of {len(masks)} masks "
                f"and {len(real)} held-out cases"
            )
        self.segment = segment
        self.classes = {name: value for name, value in classes.items() if value > 0}
        self.pairs = list(pairs)
        self.real = list(real)
        self.reconstruct = reconstruct
        self.folder = Path(folder)
        self.facts = dict(facts)
        self.spacing = list(spacing)
        self.load = LoadVolume(axcodes)
        self.axcodes = axcodes
        self.num_shown = num_shown
        self.notice = notice

    def run(self) -> dict[str, Any]:
        """Segment everything, write the report and return the content of ``mask_obedience.json``."""
        check_writable(self.folder)
        drawn = [self._judged(case) for case in tqdm(self.pairs, desc="synthetic", unit="volume")]
        held_out = [self._judged(case) for case in tqdm(self.real, desc="held out", unit="volume")]
        again = self.reconstruct(self.real)
        decoded = [self._judged(case) for case in tqdm(again, desc="held out, decoded", unit="volume")]
        rows = {
            "synthetic": drawn,
            "floor": [mine._replace(asked=other.asked) for mine, other in zip(drawn, _of_other_masks(drawn))],
            "first_stage": decoded,
            "ceiling": held_out,
        }
        report = {
            **self.facts,
            "pairs": len(drawn),
            "held_out": len(held_out),
            "dice": {name: self._means(rows[name]) for name in ROWS},
            "versions": versions(),
        }
        report["sentences"] = self._sentences(report["dice"])
        write_json(self.folder / "mask_obedience.json", report)
        text = self._markdown(report)
        write_atomically(self.folder / "mask_obedience.md", lambda temporary: temporary.write_text(text))
        self._page(report, drawn, decoded, held_out)
        print(text, flush=True)
        return report

    def _judged(self, case: Mapping[str, Any]) -> Judged:
        asked = self.load(case["label"]).as_tensor()[0].numpy().astype(np.uint8)
        found = self.segment(case)
        if asked.shape != found.shape:
            raise ValueError(f"{case['label']}: expected the {found.shape} voxels of its image, got {asked.shape}")
        return Judged(case, asked, found)

    def _means(self, judged: Sequence[Judged]) -> dict[str, dict[str, Any]]:
        """Class -> mean over masks or patients with its 95 % interval."""
        patients = [one.case["patient_id"] for one in judged]
        return {
            name: mean_over_patients([class_dice(one.asked, one.found, value) for one in judged], patients)._asdict()
            for name, value in self.classes.items()
        }

    def _sentences(self, dice: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
        said = []
        for name in self.classes:
            means = {row: dice[row][name]["mean"] for row in ROWS}
            mean, ceiling, decoded = means["synthetic"], means["ceiling"], means["first_stage"]
            if mean is None or ceiling is None or decoded is None:
                said.append(f"{name}: not measured, since no mask or no held-out volume has it.")
                continue
            verdict = "obeyed"
            if mean < ceiling - NEAR:
                of_first_stage = min(max(ceiling - decoded, 0.0), ceiling - mean)
                verdict = f"below the ceiling by {ceiling - mean:.3f}, of which {of_first_stage:.3f} by the first stage"
            floor_said = "not measured" if means["floor"] is None else f"{means['floor']:.3f}"
            said.append(
                f"{name}: Dice {mean:.3f}, floor {floor_said}, first stage {decoded:.3f}, ceiling {ceiling:.3f}: {verdict}."
            )
        return said

    def _markdown(self, report: Mapping[str, Any]) -> str:
        lines = ["# Obedience to masks", "", *(f"- {said}" for said in report["sentences"]), ""]
        header, *rows = self._table(report)
        lines += markdown_table(header, rows)
        return "\n".join([*lines, "", _explained(report), ""])

    def _table(self, report: Mapping[str, Any]) -> list[list[str]]:
        """Header, then a row for each class."""
        cells = [[name, *(_cell(report["dice"][row][name]) for row in ROWS)] for name in self.classes]
        return [["class", *(row.replace("_", " ") for row in ROWS)], *cells]

    def _page(
        self,
        report: Mapping[str, Any],
        drawn: Sequence[Judged],
        decoded: Sequence[Judged],
        held_out: Sequence[Judged],
    ) -> None:
        galleries = [
            Gallery("Synthetic volumes", "The mask that was asked for, and what was found.", self._cases(drawn)),
            Gallery("Through the first stage", "Held-out volumes, encoded and decoded.", self._cases(decoded)),
            Gallery("Held-out volumes", "Their label maps, and what was found.", self._cases(held_out)),
        ]
        title = "Obedience to masks"
        path = self.folder / "mask_obedience.html"
        facts = {key: value for key, value in report.items() if key not in ("sentences", "dice")}
        header, *rows = self._table(report)
        write_page(
            path,
            title,
            report["sentences"],
            facts,
            galleries,
            self.spacing,
            self.axcodes,
            notices=[self.notice or ""],
            sections=[table_section("Dice", _explained(report), header, rows)],
        )

    def _cases(self, judged: Sequence[Judged]) -> list[PageCase]:
        cases = []
        top = max(self.classes.values())
        for number, one in enumerate(judged[: self.num_shown]):
            image = self.load(one.case["image"]).as_tensor()[0].numpy()
            volumes = [
                PageVolume("mask", one.asked, (0, top)),
                PageVolume("segmentation", one.found, (0, top)),
                PageVolume("volume", image, (float(image.min()), float(image.max()))),
            ]
            text = ", ".join(f"{n} {class_dice(one.asked, one.found, v):.3f}" for n, v in self.classes.items())
            cases.append(PageCase(f"{number + 1}", volumes, f"Dice: {text}", difference=True))
        return cases


def _of_other_masks(drawn: Sequence[Judged]) -> list[Judged]:
    """For each volume one that was drawn from another mask: the next in the list."""
    return [
        next(
            other
            for step in range(1, len(drawn))
            if (other := drawn[(place + step) % len(drawn)]).case["patient_id"] != mine.case["patient_id"]
        )
        for place, mine in enumerate(drawn)
    ]


def _explained(report: Mapping[str, Any]) -> str:
    """What the numbers of the table are."""
    return (
        f"Dice with 95 % intervals over masks: {report['pairs']} synthetic volumes, {report['held_out']} held-out "
        "ones. Floor: the mask of another volume. Ceiling: the same segmentation on held-out real volumes. First "
        "stage: the same on these volumes encoded and decoded, the limit of every mask."
    )


def _cell(found: Mapping[str, Any]) -> str:
    if found["mean"] is None:
        return "not measured"
    if found["low"] is None:
        return f"{found['mean']:.3f}"
    return f"{found['mean']:.3f} ({found['low']:.3f} to {found['high']:.3f})"
