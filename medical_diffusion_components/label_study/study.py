"""How much pre-training saves labels: fine-tuning with few labelled patients, with and without it, several times.

The experiment of Khader et al., Scientific Reports 13, 7303 (2023), on breast segmentation, for any data.
"""

from __future__ import annotations

import functools
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout
from monai.bundle import ConfigParser
from monai.bundle.utils import ID_SEP_KEY

from medical_diffusion_components.files import file_hash, write_json
from medical_diffusion_components.label_study.volumes import write_copies
from medical_diffusion_components.workflow.run_settings import changes, without_places
from medical_diffusion_components.workflow.stages import run_config

__all__ = ["Arm", "LabelStudy", "LabelStudyRun", "chosen_arms", "num_patients", "numbers_of_patients"]

logger = logging.getLogger(__name__)


class LabelStudyRun(NamedTuple):
    """One fine-tuning: with the weights of an arm, on the labels of so many patients, from one seed."""

    arm: str
    num_labelled: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.arm}_{self.num_labelled:04d}_{self.seed}"


class Arm(NamedTuple):
    """Where the weights come from that fine-tuning starts with; without both, from nowhere.

    Args:
        weights: file of pre-trained weights.
        pretrain: settings of the pre-training that makes them, if the file is not given.
        finetune: settings of the fine-tuning that this arm has otherwise.
        weights_of: another arm, whose weights are this one's, too.
        each: one pre-training for the whole ``study``, for each ``seed`` (which is its seed), or for each ``run``.
        copies: the pre-training is on so many augmented copies of the run's labelled volumes; ``each`` must be ``run``.
    """

    weights: str | None = None
    pretrain: Mapping[str, Any] | None = None
    finetune: Mapping[str, Any] = {}
    weights_of: str | None = None
    each: str = "study"
    copies: int | None = None

    def check(self, name: str, names: Sequence[str]) -> None:
        """Refuse what contradicts itself.

        Raises:
            ValueError: naming the arm.
        """
        if sum(origin is not None for origin in (self.weights, self.pretrain, self.weights_of)) > 1:
            raise ValueError(f"arm {name}: expected one of weights, pre-training and weights_of, got several")
        if self.weights_of is not None and self.weights_of not in names:
            raise ValueError(f"arm {name}: weights_of must be one of {', '.join(names)}; got {self.weights_of!r}")
        if self.each not in ("study", "seed", "run"):
            raise ValueError(f"arm {name}: each must be study, seed or run; got {self.each!r}")
        if self.copies is not None and (self.pretrain is None or self.each != "run"):
            raise ValueError(f"arm {name}: copies of a run's labelled volumes need pretrain, and each: run")


class _Task(NamedTuple):
    """``work()``, once the pre-training ``needs`` is done."""

    name: str
    needs: Path | None
    work: Callable[[], None]


def chosen_arms(arms: Mapping[str, Mapping[str, Any] | None], only: Sequence[str] | None = None) -> dict[str, Any]:
    """The arms to run: those that ``only`` names, or all but those for which a folder was not given.

    Args:
        arms: name -> fields of :class:`Arm`; a ``..._dir`` that is None in their settings was not given.
        only: names; None: all.

    Raises:
        ValueError: an unknown name, or one whose folder was not given.
    """
    if only is not None and (unknown := [name for name in only if name not in arms]):
        raise ValueError(f"arms must be some of {', '.join(arms)}; got {', '.join(unknown)}")
    chosen = {}
    for name, arm in arms.items():
        settings = {**((arm or {}).get("pretrain") or {}), **((arm or {}).get("finetune") or {})}
        missing = [id for id, value in settings.items() if id.endswith("_dir") and value is None]
        if only is not None and name not in only:
            continue
        if missing and only is not None:
            raise ValueError(f"arm {name} was asked for, but no {missing[0]} was given for it")
        if missing:
            logger.info(f"label study: without arm {name}, for which no {missing[0]} was given")
        else:
            chosen[name] = dict(arm or {})
    return chosen


def numbers_of_patients(
    labelled: Sequence[int | str] | None, percentages: Sequence[float], available: int
) -> list[int]:
    """Numbers of labelled patients: as given, ``all`` for all there are, or, if None, by percentages.

    Raises:
        ValueError: a number outside 1 to ``available``, or none; or as :func:`num_patients`.
    """
    if labelled is None:
        return num_patients(percentages, available)
    numbers = [available if number == "all" else number for number in labelled]
    if not numbers or any(isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= available for n in numbers):
        raise ValueError(f"labelled must be numbers of patients from 1 to {available}, or all; got {list(labelled)}")
    return sorted({int(number) for number in numbers})


def num_patients(percentages: Sequence[float], available: int) -> list[int]:
    """Percentages of the labelled patients -> how many that are, at least one, ascending and without repetition.

    Raises:
        ValueError: a percentage outside (0, 100], or none.
    """
    if not percentages or not all(0 < p <= 100 for p in percentages):
        raise ValueError(f"shares of the patients must be percentages in (0, 100], got {list(percentages)}")
    return sorted({max(1, round(available * p / 100)) for p in percentages})


class LabelStudy:
    """Fine-tune and test every arm with every number of labelled patients and every seed, on identical schedules.

    A seed fixes the labelled patients (fewer ones are among the more), the order of the data, the augmentation and the
    weights that no arm brings. Every run leaves ``result.json``; what has one is not run again, and a run that was
    interrupted resumes from its checkpoint. Several processes may work on one study, started by ``torchrun`` or in
    several terminals: each takes the next run that nobody holds. When the last run is done, all of them are returned.

    Args:
        folder: where everything goes.
        arms: name -> :class:`Arm`, or a dictionary of its fields.
        labelled: numbers of labelled patients.
        seeds: one run for each.
        pretrain_configs: configuration of the pre-training and its overlays.
        finetune_configs: configuration of the fine-tuning and its overlays.
        evaluate_configs: configuration of the test and its overlays.
        pretrain_settings: id -> value, for every pre-training; among them what makes the networks equal.
        settings: id -> value, for every fine-tuning and test, where they have the id.
        data_sha256: of the labelled data; part of what a result is valid for.

    Raises:
        ValueError: an arm that contradicts itself, no seed, or, when run, a result in ``folder`` that was made with other
            settings.
    """

    def __init__(
        self,
        folder: str | Path,
        arms: Mapping[str, Mapping[str, Any]],
        labelled: Sequence[int],
        seeds: Sequence[int],
        pretrain_configs: Sequence[str],
        finetune_configs: Sequence[str],
        evaluate_configs: Sequence[str],
        pretrain_settings: Mapping[str, Any],
        settings: Mapping[str, Any],
        data_sha256: str = "",
    ) -> None:
        self.folder = Path(folder)
        self.arms = {name: Arm(**dict(arm or {})) for name, arm in arms.items()}
        for name, arm in self.arms.items():
            arm.check(name, list(self.arms))
        self.labelled = [int(number) for number in labelled]
        self.seeds = [int(seed) for seed in seeds]
        if not self.seeds:
            raise ValueError("expected at least one seed, got none")
        self.pretrain_configs = list(pretrain_configs)
        self.finetune_configs = list(finetune_configs)
        self.evaluate_configs = list(evaluate_configs)
        self.pretrain_settings = dict(pretrain_settings)
        known = {id for file in (*finetune_configs, *evaluate_configs) for id in ConfigParser.load_config_file(file)}
        self.settings = {id: value for id, value in settings.items() if id.split(ID_SEP_KEY)[0] in known}
        self.data_sha256 = data_sha256

    def runs(self) -> list[LabelStudyRun]:
        """All runs; every seed completes a curve of each arm before the next one begins."""
        return [
            LabelStudyRun(arm, number, seed) for seed in self.seeds for number in self.labelled for arm in self.arms
        ]

    def run(self, report: Callable[[list[dict[str, Any]]], None] | None = None) -> list[dict[str, Any]]:
        """Do what is left to do and return the results of all runs, as :meth:`finetune` writes them.

        Args:
            report: called with the results so far whenever this process has finished a run.
        """
        pending: list[_Task] = []
        for run in self.runs():
            made = self._pretraining(run)
            if made is not None and made.name not in {task.name for task in pending}:
                pending.append(_Task(made.name, None, functools.partial(self.pretrain, run)))
            pending.append(_Task(run.name, made, functools.partial(self.finetune, run)))
        (self.folder / "locks").mkdir(parents=True, exist_ok=True)
        while pending:
            left = []
            for task in pending:
                was_done = self._result_file_named(task.name).is_file()
                if not self._try(task):
                    left.append(task)
                elif report is not None and not was_done and self._result_file_named(task.name).is_file():
                    report(self.results())
            if len(left) == len(pending):
                time.sleep(1.0)  # others are at work on what is left
            pending = left
        return self.results()

    def results(self) -> list[dict[str, Any]]:
        """The results that are there, in the order of :meth:`runs`."""
        files = [self._result_file_named(run.name) for run in self.runs()]
        return [json.loads(file.read_text()) for file in files if file.is_file()]

    def _try(self, task: _Task) -> bool:
        """Do a task, unless another process is at it or its weights are not there yet; whether it is done."""
        if task.needs is not None and not (task.needs / "done.json").is_file():
            return False
        try:
            # the lock of a process that dies is free again, and its task is then taken up by another
            with FileLock(self.folder / "locks" / task.name, blocking=False):
                task.work()
        except Timeout:
            return False
        return True

    def _origin(self, run: LabelStudyRun) -> tuple[str, Arm]:
        """The arm whose weights a run starts from, with its name."""
        name = self.arms[run.arm].weights_of or run.arm
        return name, self.arms[name]

    def _pretraining(self, run: LabelStudyRun) -> Path | None:
        """Folder of the pre-training whose weights a run starts from."""
        name, arm = self._origin(run)
        if arm.pretrain is None:
            return None
        each = {"study": name, "seed": f"{name}_{run.seed}", "run": run._replace(arm=name).name}[arm.each]
        return self.folder / "pretrained" / each

    def weights(self, run: LabelStudyRun) -> Path | None:
        """File of the weights that a run starts from."""
        made = self._pretraining(run)
        if made is not None:
            return made / "models" / "model.pt"
        file = self._origin(run)[1].weights
        return None if file is None else Path(file)

    def pretrain(self, run: LabelStudyRun) -> None:
        """Make the weights that a run starts from, unless they are there."""
        folder = self._pretraining(run)
        arm = self._origin(run)[1]
        assert folder is not None and arm.pretrain is not None, f"arm {run.arm} brings its weights"
        settings = {**self.pretrain_settings, **arm.pretrain, **({} if arm.each == "study" else {"seed": run.seed})}
        if arm.copies is not None:
            settings["dataset_dir"] = str(self.folder / "copies" / folder.name)
        done = folder / "done.json"
        data = {"dataset_dir": settings.get("dataset_dir"), "generator": settings.get("generator")}
        wanted = without_places(settings) | data  # whose hash is not known before the training has begun
        if _is_done(done, wanted):
            return
        logger.info(f"label study: pre-training {folder.name}")
        with _charged(folder) as spent:
            if arm.copies is not None:
                labelled = run.num_labelled, run.seed
                write_copies(self.settings["dataset_dir"], *labelled, arm.copies, settings["dataset_dir"])
            run_config(self.pretrain_configs, {**settings, **_folders(folder)})
        write_json(done, {"settings": wanted, **spent})

    def finetune(self, run: LabelStudyRun) -> None:
        """Fine-tune and test, unless there is a result.

        It has ``arm``, ``num_labelled``, ``seed``, ``settings``, ``evaluation``, and what it cost: ``processor_seconds``
        and ``elapsed_seconds`` of this fine-tuning, ``killed_attempts`` whose time is not among them, and ``pretraining``
        with those of the pre-training it started from.
        """
        folder = self.folder / "runs" / run.name
        if _is_done(self._result_file_named(run.name), self._identity(run)):
            return
        logger.info(f"label study: {run.name}")
        settings = {**self._settings(run), **_folders(folder)}
        with _charged(folder) as spent:
            run_config(self.finetune_configs, settings)
        run_config(self.evaluate_configs, settings)
        evaluation = json.loads((folder / "output" / "evaluation" / "evaluation.json").read_text())
        made = self._pretraining(run)
        before = {} if made is None else json.loads((made / "done.json").read_text())
        cost = {**spent, "pretraining": {name: before.get(name, 0.0) for name in spent}}
        result = {**run._asdict(), "settings": self._identity(run), "evaluation": evaluation, **cost}
        write_json(self._result_file_named(run.name), result)

    def _settings(self, run: LabelStudyRun) -> dict[str, Any]:
        weights = self.weights(run)
        return {
            **self.settings,
            **self.arms[run.arm].finetune,
            "pretrained_weights": None if weights is None else str(weights),
            "num_labelled": run.num_labelled,
            "label_seed": run.seed,
            "seed": run.seed,
        }

    def _identity(self, run: LabelStudyRun) -> dict[str, Any]:
        """What a result is valid for: the settings, with hashes in the place of paths."""
        settings = self._settings(run)
        weights = settings["pretrained_weights"]
        hashed = {"data_sha256": self.data_sha256, "pretrained_sha256": weights and file_hash(weights)}
        return without_places(settings) | hashed

    def _result_file_named(self, name: str) -> Path:
        return self.folder / "runs" / name / "result.json"


@contextmanager
def _charged(folder: Path) -> Iterator[dict[str, float]]:
    """What the work inside has cost, with what earlier attempts that were interrupted had cost, in ``cost.json``.

    What an attempt cost that the system killed is not known; ``killed_attempts`` counts them.
    """
    file = folder / "cost.json"
    spent = {"processor_seconds": 0.0, "elapsed_seconds": 0.0, "killed_attempts": 0}
    spent.update(json.loads(file.read_text()) if file.is_file() else {})
    write_json(file, {**spent, "killed_attempts": spent["killed_attempts"] + 1})  # until this one ends
    processor, elapsed = time.process_time(), time.monotonic()
    try:
        yield spent
    finally:
        spent["processor_seconds"] += time.process_time() - processor
        spent["elapsed_seconds"] += time.monotonic() - elapsed
        write_json(file, spent)


def _folders(folder: Path) -> dict[str, str]:
    return {"output_dir": str(folder / "output"), "models_dir": str(folder / "models")}


def _is_done(path: Path, wanted: Mapping[str, Any]) -> bool:
    if not path.is_file():
        return False
    changed = changes(json.loads(path.read_text())["settings"], wanted)
    if changed:
        raise ValueError(f"{path} was made with other settings ({changed}): give the study another output_dir")
    return True
