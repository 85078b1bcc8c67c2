"""The check of a folder to train on, and the contact sheet of one that was just prepared."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from medical_diffusion_components.data.datasets import check_spacing, load_cases
from medical_diffusion_components.data.segmentation_cases import labelled_cases
from medical_diffusion_components.data.splits import SPLITS
from medical_diffusion_components.files import check_writable, folder_setting
from medical_diffusion_components.preflight.check_report import SHEET, CheckReport, write_check
from medical_diffusion_components.preflight.contact_sheet import contact_sheet
from medical_diffusion_components.preflight.headers import on_ras_axes, read_facts, without_identifiers
from medical_diffusion_components.preflight.look import look_at, within_budget
from medical_diffusion_components.preflight.survey import Survey
from medical_diffusion_components.preparation.case import why_refused
from medical_diffusion_components.preparation.inventory import RawCase
from medical_diffusion_components.preparation.same_scan import in_two_splits
from medical_diffusion_components.preparation.scan_remarks import Mixture
from medical_diffusion_components.preparation.steps.load_scan import LoadScan, RawScan
from medical_diffusion_components.reports.drawing import save_montage
from medical_diffusion_components.threads import one_thread
from medical_diffusion_components.transforms.check_labels import CheckLabels
from medical_diffusion_components.transforms.load_volume import LoadVolume
from medical_diffusion_components.transforms.volume_error import VolumeError

__all__ = ["TrainingCheck", "draw_prepared", "warn_of_absent_classes"]

logger = logging.getLogger(__name__)

_DRAWING_SECONDS = 20.0  # at most, after a preparation


class TrainingCheck:
    """Say what is in a folder to train on, and what training would refuse.

    Args:
        dataset_dir: made by `prepare`, or of NIfTI files.
        report_dir: gets ``check.json``, ``check.md`` and ``contact_sheet.png``.
        preprocessing: transforms of training that read and check a volume; run on those that are looked at.
        axcodes: where the axes of ``image_size`` and ``min_size`` point.
        image_size: voxels that every volume must have; None for any.
        min_size: voxels that every volume must have at least; None for any.
        look_seconds: time for looking at voxels, and half as much for finding the classes in labels; one of each is always
            looked at.
        training: GB of a training step by stage.
        classes: name -> value, of a training with labels; None for one without.
        resample: whether a training with labels brings volumes to one spacing.
    """

    def __init__(
        self,
        dataset_dir: str | os.PathLike | None,
        report_dir: str | os.PathLike,
        preprocessing: Sequence[Callable] = (),
        axcodes: str = "RAS",
        image_size: Sequence[int] | None = None,
        min_size: Sequence[int] | None = None,
        look_seconds: float = 4.0,
        training: Mapping[str, float] | None = None,
        classes: Mapping[str, int] | None = None,
        resample: bool = False,
    ) -> None:
        if dataset_dir is None:
            raise ValueError("give --dataset_dir, the folder to train on; the embedded cohort needs no check")
        self.dataset_dir = folder_setting("dataset_dir", dataset_dir).resolve()
        self.report_dir = folder_setting("report_dir", report_dir).resolve()
        self.preprocessing = list(preprocessing)
        self.axcodes = axcodes
        self.image_size = None if image_size is None else on_ras_axes(tuple(image_size), axcodes)
        self.min_size = None if min_size is None else on_ras_axes(tuple(min_size), axcodes)
        self.look_seconds = float(look_seconds)
        self.training = dict(training or {})
        self.classes = classes
        self.resample = resample

    def run(self) -> CheckReport:
        """Check, write the report, and print it.

        Raises:
            FileNotFoundError, NotADirectoryError, ValueError: as of ``load_cases``.
        """
        check_writable(self.report_dir)
        cases = {split: load_cases(self.dataset_dir, split) for split in SPLITS}
        survey = survey_of(
            {case["case_id"]: Path(case["image"]) for listed in cases.values() for case in listed}, self.dataset_dir
        )
        for case_id, facts in survey.facts.items():
            if facts.shape is not None and case_id not in survey.refused:
                self._check_size(case_id, facts.shape, survey)
        items = {case["case_id"]: case for listed in cases.values() for case in listed}
        with one_thread():
            order = [items[case_id] for case_id in survey.order_of_looks()]
            within_budget(order, lambda case: self._look(case, survey), self.look_seconds)
        room, short = self._room(cases, survey)
        mixture = Mixture()
        short += [
            f"one of {one} and {other}: they hold the same scan, in two splits"
            for one, other in in_two_splits(cases, mixture.look)
        ]
        remarks = mixture.remarks()
        remarks += self._check_labels(cases, survey, short) if self.classes is not None else []
        report = CheckReport("Check before training", self._found(cases), survey, room, remarks, short)
        write_check(report, self.report_dir)
        print(report.as_console_text(self.report_dir), flush=True)
        return report

    def _check_size(self, case_id: str, shape: tuple[int, ...], survey: Survey) -> None:
        said = " x ".join(map(str, shape))
        if self.image_size is not None and shape != self.image_size:
            wanted = " x ".join(map(str, self.image_size))
            survey.refused[case_id] = f"expected size {wanted} voxels (right, front, up), got {said}"
        elif self.min_size is not None and any(n < least for n, least in zip(shape, self.min_size)):
            wanted = " x ".join(map(str, self.min_size))
            survey.refused[case_id] = f"expected size at least {wanted} voxels (right, front, up), got {said}"

    def _look(self, case: Mapping[str, Any], survey: Survey) -> None:
        case_id, item = case["case_id"], dict(case)
        if self.classes is not None and "label" not in case:
            survey.refused.setdefault(case_id, "dataset.json lists no label for it")
            return
        try:
            survey.looks[case_id] = look_at(LoadScan()(case["image"]), "RAS")
            for transform in self.preprocessing:
                item = transform(item)
        except Exception as error:  # of transforms, in one of many kinds
            survey.refused.setdefault(case_id, without_identifiers(why_refused(error)[1], self.dataset_dir))

    def _check_labels(
        self, cases: Mapping[str, Sequence[Mapping[str, Any]]], survey: Survey, short: list[str]
    ) -> list[str]:
        """What a training with labels refuses of the cases together goes into ``short``; returns what it remarks on."""
        for split in ("training", "validation"):
            try:
                labelled_cases(self.dataset_dir, split)
            except ValueError as error:
                short.append(without_identifiers(str(error), self.dataset_dir))
        try:
            check_spacing([*cases["training"], *cases["validation"]], self.resample)
        except ValueError as error:
            short.append(without_identifiers(str(error), self.dataset_dir))
        good = [case for case in cases["training"] if "label" in case and case["case_id"] not in survey.refused]
        try:
            said = _absent_classes(good, self.classes or {}, self.look_seconds / 2)
        except VolumeError as error:
            said = without_identifiers(str(error), self.dataset_dir)
        return [said] if said and good else []

    def _found(self, cases: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
        patients = {split: len({case["patient_id"] for case in listed}) for split, listed in cases.items()}
        return {
            "volumes": {split: len(listed) for split, listed in cases.items()},
            "patients": patients,
            "labels": sum("label" in case for listed in cases.values() for case in listed),
        }

    def _room(
        self, cases: Mapping[str, Sequence[Mapping[str, Any]]], survey: Survey
    ) -> tuple[dict[str, Any], list[str]]:
        room: dict[str, Any] = {}
        short = []
        voxels = sum(survey.facts[case["case_id"]].voxels for case in cases["training"])
        room["training volumes in memory, if all are kept"] = f"{voxels * 4 / 1e9:.2f} GB"
        free = available_gb()
        for stage, gigabytes in self.training.items():
            room[f"peak memory of a training step, {stage}"] = f"{gigabytes:.1f} GB (on a CPU, in float32)"
            if free is not None and not torch.cuda.is_available() and gigabytes > free:
                short.append(f"a smaller batch: a step of the {stage} needs {gigabytes:.1f} GB, {free:.1f} are free")
        return room, short


def warn_of_absent_classes(cases: Sequence[Mapping[str, Any]], classes: Mapping[str, int]) -> None:
    """Log a warning that names the classes of which no label has a voxel; labels are read until all have been seen.

    Args:
        cases: to train on, with ``label``.
        classes: name -> value.

    Raises:
        ValueError: ``classes`` is no dictionary of names and whole numbers.
        VolumeError: a label that cannot be read.
    """
    if said := _absent_classes(cases, classes):
        logger.warning(said)


def _absent_classes(cases: Sequence[Mapping[str, Any]], classes: Mapping[str, int], seconds: float = math.inf) -> str:
    """Says which classes have no voxel in labels that are read until all were seen or the time is up; else nothing."""
    absent, load = CheckLabels(classes).classes, LoadVolume()

    def look(case: Mapping[str, Any]) -> None:
        nonlocal absent
        there = set(load(case["label"]).unique().tolist()) if absent else ()
        absent = {name: value for name, value in absent.items() if value not in there}

    looked = within_budget(cases, look, seconds)
    if not absent:
        return ""
    if looked < len(cases):
        return f"no voxel of {', '.join(absent)} is in any of the {looked} of {len(cases)} training labels looked at"
    return f"no voxel of {', '.join(absent)} is in any of {len(cases)} training labels: nothing is learned of it"


def draw_prepared(dataset_dir: Path, images: Mapping[str, Path]) -> None:
    """Write ``contact_sheet.png`` of prepared volumes into their folder; those unlike the others are framed.

    Args:
        dataset_dir: the folder.
        images: case id -> file; a file that cannot be read is an error.
    """
    if not images:
        return
    survey = survey_of(images, dataset_dir)

    def look(case_id: str) -> None:
        survey.looks[case_id] = look_at(LoadScan()(images[case_id]), "RAS")

    with one_thread():
        within_budget(survey.order_of_looks(), look, _DRAWING_SECONDS)
    title = f"Prepared volumes: {len(survey.looks)} of {len(images)}; sagittal, coronal, axial; outliers are framed"
    save_montage(contact_sheet(survey.cells(), title), dataset_dir / SHEET)


def survey_of(images: Mapping[str, Path], folder: Path) -> Survey:
    """The headers of NIfTI files by case id."""
    survey, load = Survey(), LoadScan()
    for case_id, path in sorted(images.items()):
        survey.add(read_facts(RawCase(case_id, "", None, RawScan(str(path))), load, folder))
    return survey


def available_gb() -> float | None:
    """Memory that programs could take now, in GB; None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    kib = next((int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)
    return None if kib is None else math.floor(kib * 1024 / 1e8) / 10
