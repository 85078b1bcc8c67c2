"""How much pre-training saves labels: fine-tuning with few labelled patients, with and without it, several times.

The experiment of Khader et al., Scientific Reports 13, 7303 (2023), on breast segmentation, for any data.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout
from monai.bundle import ConfigParser
from monai.bundle.utils import ID_SEP_KEY

from medical_diffusion_components.files import file_hash, write_json
from medical_diffusion_components.workflow.run_settings import changes, without_places
from medical_diffusion_components.workflow.stages import run_config

__all__ = ["Arm", "LabelStudy", "LabelStudyRun", "num_patients"]

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
    """

    weights: str | None = None
    pretrain: Mapping[str, Any] | None = None
    finetune: Mapping[str, Any] = {}


class _Task(NamedTuple):
    """``work(what)``, once the arm ``needs`` has its weights."""

    name: str
    needs: str | None
    work: Callable[[Any], None]
    what: Any


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
        ValueError: an arm with a file of weights and a pre-training at once, or, when run, a result in ``folder`` that
            was made with other settings.
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
            if arm.weights is not None and arm.pretrain is not None:
                raise ValueError(f"arm {name}: expected weights or a pre-training, got both")
        self.labelled = [int(number) for number in labelled]
        self.seeds = [int(seed) for seed in seeds]
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

    def run(self) -> list[dict[str, Any]]:
        """Do what is left to do and return the results of all runs, as :meth:`finetune` writes them."""
        pending = [
            _Task(name, None, self.pretrain, name) for name, arm in self.arms.items() if arm.pretrain is not None
        ]
        pending += [_Task(run.name, run.arm, self.finetune, run) for run in self.runs()]
        (self.folder / "locks").mkdir(parents=True, exist_ok=True)
        while pending:
            left = [task for task in pending if not self._try(task)]
            if len(left) == len(pending):
                time.sleep(1.0)  # others are at work on what is left
            pending = left
        return [json.loads(self._result_file(run).read_text()) for run in self.runs()]

    def _try(self, task: _Task) -> bool:
        """Do a task, unless another process is at it or its weights are not there yet; whether it is done."""
        if task.needs is not None and not self._is_pretrained(task.needs):
            return False
        try:
            # the lock of a process that dies is free again, and its task is then taken up by another
            with FileLock(self.folder / "locks" / task.name, blocking=False):
                task.work(task.what)
        except Timeout:
            return False
        return True

    def weights(self, arm: str) -> Path | None:
        """File of the weights that an arm starts from."""
        if self.arms[arm].pretrain is not None:
            return self.folder / "pretrained" / arm / "models" / "model.pt"
        file = self.arms[arm].weights
        return None if file is None else Path(file)

    def pretrain(self, name: str) -> None:
        """Make the weights of an arm, unless they are there."""
        folder = self.folder / "pretrained" / name
        own = self.arms[name].pretrain
        assert own is not None, f"arm {name} brings its weights"
        settings = {**self.pretrain_settings, **own}
        done = folder / "done.json"
        data = {"dataset_dir": settings.get("dataset_dir"), "generator": settings.get("generator")}
        wanted = without_places(settings) | data  # whose hash is not known before the training has begun
        if _is_done(done, wanted):
            return
        logger.info(f"label study: pre-training {name}")
        run_config(self.pretrain_configs, {**settings, **_folders(folder)})
        write_json(done, {"settings": wanted})

    def finetune(self, run: LabelStudyRun) -> None:
        """Fine-tune and test, unless there is a result: ``{arm, num_labelled, seed, settings, evaluation}``."""
        folder = self.folder / "runs" / run.name
        if _is_done(self._result_file(run), self._identity(run)):
            return
        logger.info(f"label study: {run.name}")
        settings = {**self._settings(run), **_folders(folder)}
        run_config(self.finetune_configs, settings)
        run_config(self.evaluate_configs, settings)
        evaluation = json.loads((folder / "output" / "evaluation" / "evaluation.json").read_text())
        wanted = self._identity(run)
        write_json(self._result_file(run), {**run._asdict(), "settings": wanted, "evaluation": evaluation})

    def _is_pretrained(self, arm: str) -> bool:
        return self.arms[arm].pretrain is None or (self.folder / "pretrained" / arm / "done.json").is_file()

    def _settings(self, run: LabelStudyRun) -> dict[str, Any]:
        weights = self.weights(run.arm)
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

    def _result_file(self, run: LabelStudyRun) -> Path:
        return self.folder / "runs" / run.name / "result.json"


def _folders(folder: Path) -> dict[str, str]:
    return {"output_dir": str(folder / "output"), "models_dir": str(folder / "models")}


def _is_done(path: Path, wanted: Mapping[str, Any]) -> bool:
    if not path.is_file():
        return False
    changed = changes(json.loads(path.read_text())["settings"], wanted)
    if changed:
        raise ValueError(f"{path} was made with other settings ({changed}): give the study another output_dir")
    return True
