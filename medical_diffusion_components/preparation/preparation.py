"""Raw downloads into a folder to train on: finds the cases, runs each through the transforms, in parallel.

A run may be interrupted at any point and repeated: what is finished is recognised and left alone. A case that cannot be
prepared is refused with its reason and does not keep the others from being made.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Executor, Future, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from tqdm import tqdm

from medical_diffusion_components.data.splits import SPLITS, split_patients
from medical_diffusion_components.files import check_writable, folder_setting, versions, write_json
from medical_diffusion_components.preparation.bids import participant_conditions
from medical_diffusion_components.preparation.case import (
    CANNOT_WRITE,
    CaseResult,
    finished_result,
    prepare_case,
    read_note,
)
from medical_diffusion_components.preparation.case_ids import without_uids
from medical_diffusion_components.preparation.companions import add_companions
from medical_diffusion_components.preparation.conditions_table import read_conditions_table
from medical_diffusion_components.preparation.duplicates import leave_duplicates
from medical_diffusion_components.preparation.inventory import Inventory, RawCase, Selection, take_inventory
from medical_diffusion_components.preparation.manifests import Manifest, manifest_hash, read_manifest
from medical_diffusion_components.preparation.raw_cases import inventory_of_manifest
from medical_diffusion_components.preparation.report import PreparationReport, write_report
from medical_diffusion_components.preparation.settings import settings_hash

__all__ = ["Preparation", "TooManyRefused", "run_or_exit"]

UNFINISHED = "The preparation of this folder was not finished: run `prepare` again."
_GUARD = (
    'A script that runs `prepare` must do so below the line `if __name__ == "__main__":`, since each worker process '
    "imports the script"
)


class TooManyRefused(RuntimeError):
    """More cases were refused than allowed."""


class Preparation:
    """Turn the raw scans of a folder into volumes to train on.

    Writes ``images/<case_id>.nii.gz``, ``labels/<case_id>.nii.gz`` if the steps make labels, ``cases/<case_id>.json`` (from
    what it was made), ``dataset.json`` (MONAI's datalist), ``report.json`` and ``report.md``. While cases are missing,
    ``dataset.json`` lists none, so that nobody trains on half of the data.

    Args:
        raw_dir: the download, or a folder of NIfTI files or DICOM series.
        dataset_dir: where the results go; made if it is not there.
        steps: transforms, see :func:`~medical_diffusion_components.preparation.case.prepare_case`.
        executor: makes a ``concurrent.futures.Executor`` when called: a class with its arguments bound, or
            ``distributed.Client(...).get_executor``. Called again when a worker process died.
        manifest: path of a manifest; None or ``"none"``: every scan in the folder is a case, patients are split by
            ``split_patients``.
        select: keep only the manifest's cases with these values, such as ``{"kind": ["IDEAL"]}``; without a manifest, the
            scans with these BIDS entities, such as ``"suffix=T1w"``, one of each session.
        patient_pattern: without a manifest, what names the patient: see ``Selection``.
        patients: without a manifest, path of a table of files and patients, which counts before all else.
        companions: further files of a case, such as ``{"mask": "/data/masks/{case_id}.nii.gz"}``; a case without the
            file goes without the key, which the report says; it is an error if no case has one.
        conditions_table: path of a table of what is known of cases or patients, see
            :func:`~medical_diffusion_components.preparation.conditions_table.read_conditions_table`; it counts before what
            ``participants.tsv`` says.
        in_flight: cases handed to the executor at once; at least the number of its workers.
        max_refused_share: more refused cases than this share, in [0, 1], end the run with an error.
        allow_absent: cases of the manifest that are not in ``raw_dir`` do not count as refused.
        draw: called with ``dataset_dir`` and the prepared images by case id, to draw them; None: no picture.
    """

    def __init__(
        self,
        raw_dir: str | os.PathLike | None,
        dataset_dir: str | os.PathLike | None,
        steps: Sequence[Callable],
        executor: Callable[[], Executor],
        manifest: str | os.PathLike | None = None,
        select: Mapping[str, Sequence[Any]] | str | None = None,
        patient_pattern: str | None = None,
        patients: str | os.PathLike | None = None,
        companions: Mapping[str, str | None] | None = None,
        conditions_table: str | os.PathLike | None = None,
        in_flight: int = 8,
        max_refused_share: float = 0.05,
        allow_absent: bool = False,
        draw: Callable[[Path, Mapping[str, Path]], None] | None = None,
    ) -> None:
        if raw_dir is None or dataset_dir is None:
            raise ValueError("prepare needs --raw_dir (the download) and --dataset_dir (where the results go)")
        versions()  # what is missing is missed now, not after the work
        self.raw_dir = folder_setting("raw_dir", raw_dir).resolve()
        self.dataset_dir = folder_setting("dataset_dir", dataset_dir).resolve()
        if self.raw_dir == self.dataset_dir or self.raw_dir in self.dataset_dir.parents:
            raise ValueError(
                f"dataset_dir must lie outside raw_dir, or the results would be taken for raw scans next time; got "
                f"{self.dataset_dir} inside {self.raw_dir}"
            )
        if not 0 <= max_refused_share <= 1:
            raise ValueError(f"max_refused_share must be in [0, 1], got {max_refused_share}")
        if in_flight < 1:
            raise ValueError(f"in_flight must be at least 1, got {in_flight}: is --num_workers at least 1?")
        self.steps = [step for step in steps if step is not None]
        self.settings = settings_hash(self.steps)
        self.executor = executor
        file = None if str(manifest).lower() == "none" else manifest
        self.manifest = None if file is None else _selected(read_manifest(file), select)
        if file is not None and (patients or patient_pattern):
            raise ValueError(
                "the manifest says whose scans are whose: leave it out (--manifest none) or leave out patients"
            )
        self.selection = Selection(patient_pattern, patients, select if file is None else None)
        self.companions = {
            key: os.path.expanduser(path) for key, path in (companions or {}).items() if path is not None
        }
        self.table = None if conditions_table is None else read_conditions_table(conditions_table)
        self.in_flight = int(in_flight)
        self.max_refused_share = float(max_refused_share)
        self.allow_absent = allow_absent
        self.draw = draw

    def run(self) -> PreparationReport:
        """Prepare what is not there yet, then write the datalist and the report.

        Raises:
            TooManyRefused: after everything is written.
            FileNotFoundError, ValueError: the folder or the manifest cannot be used; nothing is written.
            BlockingIOError: another process is preparing the same folder.
            ChildProcessError: no worker process can start.
            OSError: a volume could not be written, as on a full disk; the folder holds what was finished before.
        """
        started = time.monotonic()
        self.dataset_dir.mkdir(parents=True, exist_ok=True)
        with _alone_in(self.dataset_dir):
            for part in ("", "images", "labels", "cases"):
                check_writable(self.dataset_dir / part)  # also removes what a killed run has left
            inventory = self.take_inventory()
            cases = inventory.cases
            results = [_absent(case) for case in cases if case.scan is None]
            todo: list[RawCase] = []
            for case in tqdm([case for case in cases if case.scan], "looking for finished cases", unit="case"):
                earlier = finished_result(case, self.dataset_dir, self.settings)
                if earlier is None:
                    todo.append(case)
                else:
                    results.append(earlier)
            if todo:
                self._announce(todo)
                write_json(self.dataset_dir / "dataset.json", _datalist({split: [] for split in SPLITS}, UNFINISHED))
            bar = tqdm(self._results(todo), "preparing", len(todo), unit="case", disable=not todo)
            for result in bar:
                results.append(result)
                if result.reason == CANNOT_WRITE:  # nor could the next one
                    raise OSError(f"{result.case_id}: {result.text}. What is finished is kept: mend this, and repeat")
                bar.set_postfix(refused=sum(r.status == "refused" for r in results))
            results, contradiction = leave_duplicates(results, inventory, self.dataset_dir)
            if contradiction is None:
                self._write_datalist(results, inventory)
            wall = time.monotonic() - started
            limits = (self.max_refused_share, self.allow_absent)
            report = PreparationReport(
                tuple(results), wall, self.settings, *limits, inventory, self.decisions(inventory)
            )
            write_report(report, self.dataset_dir)
            if self.draw is not None:
                outputs = [output for result in results for output in result.outputs]
                self.draw(self.dataset_dir, {o["case_id"]: self.dataset_dir / o["image"] for o in outputs})
        print(report.as_console_text(self.dataset_dir / "report.md"), flush=True)
        if contradiction is not None:
            raise ValueError(contradiction)
        if report.refused_share > self.max_refused_share:
            raise TooManyRefused(
                f"{report.refused_share:.1%} of the cases were refused, {self.max_refused_share:.1%} are allowed "
                f"(max_refused_share): the reasons are in {self.dataset_dir / 'report.md'}"
            )
        return report

    def take_inventory(self) -> Inventory:
        """What lies in the raw folder, with the companions of each case; ``dataset_dir`` gets the index of its headers.

        Raises:
            FileNotFoundError, ValueError: see ``take_inventory`` and ``inventory_of_manifest``; too many broken links;
                companions of which no case has one; or a table of conditions with an unknown case or patient.
        """
        index = self.dataset_dir / "raw_index.json"
        if self.manifest is None:
            inventory = take_inventory(self.raw_dir, self.selection, index)
        else:
            inventory = inventory_of_manifest(self.manifest, self.raw_dir, index)
        broken = len(inventory.aside.get("broken link", ()))
        if broken > self.max_refused_share * (broken + len(inventory.cases)):
            raise ValueError(
                f"{broken} links in {self.raw_dir} point nowhere, beside {len(inventory.cases)} cases (max_refused_share "
                f"{self.max_refused_share:g}): the first is {inventory.aside['broken link'][0]}"
            )
        add_companions(inventory, self.companions)
        if self.table is not None:
            self.table.check(
                [case.case_id if self.table.column == "case" else case.patient_id for case in inventory.cases]
            )
        return inventory

    def decisions(self, inventory: Inventory) -> dict[str, Any]:
        """What dataset.json says of the grouping of patients, of plane and axes, and of the scale of intensities."""
        decided: dict[str, Any] = {"patients": dict(inventory.decided_by)}
        for step in self.steps:
            if hasattr(step, "decisions"):
                decided.update(step.decisions())
        return decided

    def _announce(self, todo: Sequence[RawCase]) -> None:
        notes = [read_note(self.dataset_dir, case) for case in todo]
        changed = sum(note is not None and note["settings"] != self.settings for note in notes)
        if changed:
            print(f"{changed} cases were prepared with other settings and are prepared again", flush=True)

    def _results(self, todo: Sequence[RawCase]) -> Iterator[CaseResult]:
        """Results in the order in which they come. After a crash the cases in flight run one at a time, so that the one
        that brings its process down is found out and the others are made."""
        if not todo:
            return
        waiting = deque(todo)
        running: dict[Future, RawCase] = {}
        executor = self.executor()
        try:
            while waiting or running:
                try:
                    while waiting and len(running) < self.in_flight:
                        future = self._submit(executor, waiting[0])
                        running[future] = waiting.popleft()
                    done, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        result = _result_of(future, running[future])
                        del running[future]
                        yield result
                except BrokenExecutor:
                    suspects = list(running.values())
                    running.clear()
                    executor = self._replace(executor)
                    _check_start(executor)
                    for case in suspects:
                        try:
                            result = _result_of(self._submit(executor, case), case)
                        except BrokenExecutor:
                            result = _crashed(case)
                            executor = self._replace(executor)
                        yield result
        finally:
            for future in running:
                future.cancel()
            executor.shutdown(wait=True)

    def _submit(self, executor: Executor, case: RawCase) -> Future:
        return executor.submit(prepare_case, case, self.steps, str(self.raw_dir), str(self.dataset_dir), self.settings)

    def _replace(self, broken: Executor) -> Executor:
        with suppress(Exception):  # it has no working processes that could object
            broken.shutdown(wait=False)
        return self.executor()

    def _about(self, case: RawCase) -> dict[str, dict[str, Any]]:
        """What the datalist says of the case's patient, as it was found and as conditions."""
        conditions = participant_conditions(case.about)
        if self.table is not None:
            conditions |= self.table.of(case.case_id, case.patient_id)
        about: dict[str, dict[str, Any]] = {"participant": dict(case.about), "conditions": conditions}
        return {key: values for key, values in about.items() if values}

    def _write_datalist(self, results: Sequence[CaseResult], inventory: Inventory) -> None:
        about = {case.case_id: self._about(case) for case in inventory.cases}
        made = [result for result in results if result.outputs]
        drawn: dict[str, str] = {}
        if self.manifest is None and len({result.patient_id for result in made}) >= len(SPLITS):
            drawn = split_patients(result.patient_id for result in made)
        listed: dict[str, list[dict]] = {split: [] for split in SPLITS}
        for result in made:
            split = result.split or drawn.get(result.patient_id)
            if not split:
                continue
            for output in result.outputs:
                files = {key: output[key] for key in ("image", "label") if key in output}
                entry = {**files, "case_id": output["case_id"], "patient_id": result.patient_id}
                entry.update(about.get(result.case_id, {}))
                listed[split].append({**entry, **({"part": output["part"]} if output["part"] else {})})
        content = _datalist(listed, "" if self.manifest is None else self.manifest.metadata["description"])
        if self.manifest is not None:
            for key in ("name", "licence", "reference"):
                content[key] = self.manifest.metadata[key]
            content["manifest_sha256"] = manifest_hash(self.manifest)
        content.update(decided=self.decisions(inventory), settings=self.settings, versions=versions())
        write_json(self.dataset_dir / "dataset.json", content)
        if empty := [split for split in SPLITS if not listed[split]]:
            patients = len({result.patient_id for result in made})
            print(
                f"No volume in {', '.join(empty)}: this folder of {patients} patient(s) cannot be trained on as it is; "
                f"without a manifest at least {len(SPLITS)} are needed",
                flush=True,
            )


def run_or_exit(make: Callable[[], Preparation]) -> PreparationReport:
    """Run what ``make`` makes; what the user can mend, or that no volume was made, ends the program with one line."""
    try:
        preparation = make()
        report = preparation.run()
    except (TooManyRefused, ValueError, OSError, ImportError) as error:
        sys.exit(f"prepare: {error}")
    if not any(result.outputs for result in report.results):
        sys.exit(f"prepare: no volume was made; the reasons are in {preparation.dataset_dir / 'report.md'}")
    return report


def _selected(manifest: Manifest, select: Mapping[str, Sequence[Any]] | str | None) -> Manifest:
    if isinstance(select, str):
        raise ValueError(
            f"select: expected a column of the manifest and its values, as in {{sex: [F]}}, got {select!r}"
        )
    for key, allowed in (select or {}).items():
        manifest = manifest.select(key, allowed)
    return manifest


def _absent(case: RawCase) -> CaseResult:
    return CaseResult(*case[:3], "absent", "absent", without_uids(case.absent))


def _result_of(future: Future, case: RawCase) -> CaseResult:
    try:
        return future.result()
    except BrokenExecutor:
        raise
    except (Exception, CancelledError) as error:  # what a cluster makes of a lost worker, or of what it cannot send
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
        return CaseResult(*case[:3], "refused", "worker_failed", text)


def _check_start(executor: Executor) -> None:
    """Refuse to go through all cases with processes of which none lives long enough to begin one."""
    try:
        executor.submit(int).result()
    except BrokenExecutor as error:
        raise ChildProcessError(f"no worker process can start; the reason is printed above. {_GUARD}") from error


def _crashed(case: RawCase) -> CaseResult:
    text = "its worker process died, perhaps for want of memory"
    return CaseResult(*case[:3], "refused", "crashed", text)


def _datalist(listed: Mapping[str, list[dict]], description: str) -> dict[str, Any]:
    content: dict[str, Any] = {"name": "prepared volumes", "description": description}
    for split in SPLITS:
        content[split] = sorted(listed[split], key=lambda entry: entry["case_id"])
    return content


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Hold a lock that ends with the process, however it ends."""
    lock = FileLock(folder / ".lock", fallback_to_soft=False)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        text = f"another process is preparing {folder}: wait for it, or end it"
        if multiprocessing.current_process().name != "MainProcess":  # perhaps a worker that is importing the script
            text = f"{text}. {_GUARD}"
        raise BlockingIOError(text) from error
    try:
        yield
    finally:
        lock.release()
