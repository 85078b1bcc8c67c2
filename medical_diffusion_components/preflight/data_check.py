"""`check`: reports what `prepare` would make of a folder, without making it.

Every header is read, the voxels of some scans are looked at, and a few are prepared for trial in a temporary folder.
Nothing is written but the report. It names scans by the case ids of `prepare`, and holds no identifier of a DICOM header.
"""

from __future__ import annotations

import copy
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from medical_diffusion_components.data.splits import SPLITS
from medical_diffusion_components.files import check_writable, folder_setting
from medical_diffusion_components.preflight.check_report import CheckReport, write_check
from medical_diffusion_components.preflight.headers import read_facts, without_identifiers
from medical_diffusion_components.preflight.look import look_at, within_budget
from medical_diffusion_components.preflight.rehearsal import Estimate, fresh_process_mib, rehearse
from medical_diffusion_components.preflight.survey import Survey
from medical_diffusion_components.preparation.case import (
    IMAGE_KEY,
    LANDMARKS,
    NotAScanError,
    run_steps,
    why_refused,
)
from medical_diffusion_components.preparation.inventory import Inventory, RawCase
from medical_diffusion_components.preparation.preparation import Preparation
from medical_diffusion_components.preparation.same_scan import same_scans
from medical_diffusion_components.preparation.steps.load_scan import LoadScan, LoadScand
from medical_diffusion_components.preparation.steps.notes import NOTES_KEY
from medical_diffusion_components.preparation.steps.run_command import RunCommandd
from medical_diffusion_components.threads import one_thread

__all__ = ["DataCheck", "check_or_exit"]

_CHEAP = {"LoadScand", "CheckVolumed", "CheckHounsfieldd", "FillPaddingd"}  # steps that take no longer than reading


class DataCheck:
    """Say what is in a folder and what `prepare` would make of it.

    Args:
        preparation: makes the ``Preparation`` when called, as `prepare` does.
        report_dir: gets ``check.json``, ``check.md`` and ``contact_sheet.png``.
        dataset_dir: where the results of `prepare` are to go, for the room on its disk; None: as ``report_dir``.
        look_seconds: time for looking at voxels, and half as much for cases prepared for trial; one of each is always done.
        num_workers: processes of `prepare`.
        worker_memory_gib: limit of each.
        training: GB of a training step by stage.
    """

    def __init__(
        self,
        preparation: Callable[..., Preparation],
        report_dir: str | os.PathLike,
        dataset_dir: str | os.PathLike | None = None,
        look_seconds: float = 4.0,
        num_workers: int = 1,
        worker_memory_gib: float | None = None,
        training: Mapping[str, float] | None = None,
    ) -> None:
        self.preparation = preparation
        self.report_dir = folder_setting("report_dir", report_dir).resolve()
        self.target = self.report_dir if dataset_dir is None else folder_setting("dataset_dir", dataset_dir).resolve()
        self.look_seconds = float(look_seconds)
        self.num_workers = int(num_workers)
        self.worker_memory_gib = worker_memory_gib
        self.training = dict(training or {})

    def run(self) -> CheckReport:
        """Check, write the report, and print its last line.

        Raises:
            FileNotFoundError, ValueError: the folder or the manifest cannot be used, as for `prepare`.
        """
        check_writable(self.report_dir)
        with tempfile.TemporaryDirectory(prefix="check_") as scratch:  # for the index of headers
            allowed = self.preparation(dataset_dir=scratch).max_refused_share
            preparation = self.preparation(dataset_dir=scratch, max_refused_share=1.0)  # too many are reported below
            raw_dir = preparation.raw_dir
            if raw_dir == self.report_dir or raw_dir in self.report_dir.parents:
                raise ValueError(f"report_dir must lie outside raw_dir, got {self.report_dir} inside {raw_dir}")
            inventory = preparation.take_inventory()
        survey, cases = Survey(), {case.case_id: case for case in inventory.cases}
        load = next(step.load for step in preparation.steps if isinstance(step, LoadScand))
        for case in inventory.cases:
            if case.scan is None:
                survey.refused[case.case_id] = without_identifiers(case.absent, raw_dir)
            else:
                survey.add(read_facts(case, load, raw_dir))
        good = [case for case in inventory.cases if case.case_id not in survey.refused]
        steps = [step for step in preparation.steps if not isinstance(step, RunCommandd)]
        with one_thread():
            # before anything is looked at: memory that was used and is free again would hide what a worker needs
            estimate = rehearse(good, survey.facts, steps, raw_dir, self.look_seconds / 2)
            within_budget(
                [cases[case_id] for case_id in survey.order_of_looks() if case_id in survey.facts],
                lambda case: self._look(case, steps, load, survey, raw_dir),
                self.look_seconds,
            )
        for result in estimate.results if estimate else ():
            if result.status == "aside":
                survey.aside[result.case_id] = (result.reason, without_identifiers(result.text, raw_dir))
            elif result.status != "made":
                survey.refused.setdefault(result.case_id, without_identifiers(result.text, raw_dir))
            for output in result.outputs:
                survey.remark(result.case_id, output["notes"])
        for case_id, (reason, _) in survey.aside.items():
            inventory.drop(cases[case_id], reason.replace("_", " "))
            survey.forget(case_id)
        report = self._report(preparation, inventory, survey, estimate, allowed)
        write_check(report, self.report_dir)
        print(report.as_console_text(self.report_dir), flush=True)
        return report

    def _look(self, case: RawCase, steps: list[Callable], load: LoadScan, survey: Survey, raw_dir: Path) -> None:
        """Run the checks of `prepare` on a case's voxels, and keep a picture even if they refuse it."""
        cheap: list[Callable] = []
        for step in steps:
            if type(step).__name__ not in _CHEAP:
                break
            cheap.append(step)
        axcodes = next(step.axcodes for step in steps if isinstance(step, LoadScand))
        try:
            if case.case_id not in survey.refused:
                item = run_steps(case, cheap, {})[0]
                survey.looks[case.case_id] = look_at(item[IMAGE_KEY], axcodes)
                survey.remark(case.case_id, item.get(NOTES_KEY, {}))
                survey.landmarks[case.case_id] = item.get(NOTES_KEY, {}).get(LANDMARKS, "")
                return
        except NotAScanError as error:
            survey.aside[case.case_id] = (error.reason, without_identifiers(error.text, raw_dir))
            return
        except Exception as error:
            survey.refused[case.case_id] = without_identifiers(why_refused(error)[1], raw_dir)
        try:
            survey.looks[case.case_id] = look_at(_believing(load)(case.found), axcodes)
        except Exception:  # it cannot be read at all, which was reported before
            return

    def _report(
        self,
        preparation: Preparation,
        inventory: Inventory,
        survey: Survey,
        estimate: Estimate | None,
        allowed: float,
    ) -> CheckReport:
        kept = sum(case.case_id not in survey.refused for case in inventory.cases)
        room, short = self._room(estimate, len(survey.facts), kept)
        if any(isinstance(step, RunCommandd) for step in preparation.steps):
            room["not tried"] = "the command of --brain_extraction: its time, memory and refusals come on top"
        share = len(survey.refused) / max(1, len(inventory.cases))
        if share > allowed:
            short.insert(0, f"{share:.1%} of the scans would be refused, {allowed:.1%} may be (--max_refused_share)")
        broken = len(inventory.aside.get("broken link", ()))
        if broken > allowed * (broken + len(inventory.cases)):
            short.insert(0, f"{broken} links point nowhere: fetch what they point to, or raise --max_refused_share")
        if preparation.manifest is None and inventory.num_patients < len(SPLITS):
            short.insert(
                0, f"{inventory.num_patients} patient(s): at least {len(SPLITS)} are needed, one for each split"
            )
        remarks = [without_identifiers(remark, inventory.root) for remark in inventory.remarks]
        split_of = {case.case_id: case.split for case in inventory.cases}
        for one, other in same_scans(survey.landmarks):
            text = f"{one} and {other} are one scan, perhaps mirrored, cut or rescaled"
            if split_of[one] != split_of[other]:
                short.append(f"{text}: put both into one split of the manifest, or leave one out")
            else:
                remarks.append(f"{text}: `prepare` takes them for one patient, and keeps one of two equal volumes")
        return CheckReport("Check before prepare", _found(inventory), survey, room, remarks, short)

    def _room(self, estimate: Estimate | None, num_cases: int, kept: int) -> tuple[dict[str, Any], list[str]]:
        """What is needed and what is there; and what is lacking. Of ``num_cases`` that are read, ``kept`` are written."""
        room: dict[str, Any] = {}
        short: list[str] = []
        free = shutil.disk_usage(_existing(self.target)).free / 2**20
        if estimate is not None and estimate.case_mib is not None and estimate.seconds is not None:
            result_mib = estimate.case_mib * kept
            sample = f"from {len(estimate.results)} of {num_cases} prepared for trial"
            room["disk for the result"] = f"{result_mib:,.1f} MiB ({sample}), {free:,.0f} MiB free"
            spread = estimate.seconds / min(self.num_workers, os.cpu_count() or 1)
            room["time"] = f"{_duration(spread)} with {self.num_workers} processes ({sample})"
            if result_mib > free:
                short.append(f"make room: {result_mib:,.0f} MiB are needed, {free:,.0f} are free")
        if estimate is not None and estimate.held_mib is not None and estimate.growth_mib is not None:
            limit_mib = 1024 * (self.worker_memory_gib or math.inf)
            worker_mib = estimate.held_mib + estimate.growth_mib
            if worker_mib > limit_mib:  # perhaps for what this process holds beside, such as a notebook's volumes
                worker_mib = min(estimate.held_mib, fresh_process_mib()) + estimate.growth_mib
            room["peak memory of a process"] = f"{worker_mib:,.0f} MiB"
            if worker_mib > limit_mib:
                needed = math.ceil(worker_mib / 1024 * 1.1)
                short.append(f"--worker_memory_gib {needed}: the largest case needs {worker_mib:,.0f} MiB")
        for stage, gigabytes in self.training.items():
            room[f"peak memory of a training step, {stage}"] = f"{gigabytes:.1f} GB (on a CPU, in float32)"
        return room, short


def check_or_exit(make: Callable[[], Any]) -> CheckReport:
    """Run what ``make`` makes; what the user can mend ends the program with one line instead of a traceback."""
    try:
        return make().run()
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"check: {error}")


def _found(inventory: Inventory) -> dict[str, Any]:
    aside = inventory.num_aside
    return {
        "patients": inventory.num_patients,
        "patients identified by": dict(inventory.decided_by),
        "scans": len(inventory.cases),
        "DICOM studies": inventory.num_studies,
        "DICOM series": inventory.num_series,
        "files seen": inventory.num_seen,
        "files of scans": inventory.num_used,
        "files left aside": aside,
        "files by kind": dict(inventory.kinds.most_common()),
    }


def _believing(load: LoadScan) -> LoadScan:
    """The same reader without its beliefs, for a picture of what they refuse."""
    lenient = copy.copy(load)
    lenient.plane, lenient.modality = None, None
    lenient.spacing_range, lenient.largest_extent = (0.0, math.inf), math.inf
    if lenient.affine_from == "refuse":
        lenient.affine_from = "sform"
    return lenient


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.parent)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
