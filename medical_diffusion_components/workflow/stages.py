"""A run and its stages: how one begins, trains what it needs first, and ends with the cause of an error."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

from monai.bundle import ConfigWorkflow

from medical_diffusion_components.data.datasets import warn_once
from medical_diffusion_components.distributed import end_by_error, wait_for_all
from medical_diffusion_components.weights import EMBEDDED, provenance
from medical_diffusion_components.workflow.lookup import is_stage, running
from medical_diffusion_components.workflow.overrides import changed_settings, check_overrides

__all__ = ["ensure_first_stage", "run_config", "say_weights", "start_run"]

logger = logging.getLogger(__name__)

FIRST_STAGE_CONFIG = "train_autoencoder.yaml"
_COMMON = ("data", "weights", "workflow")  # all processes would say the same; other modules warn of a process's cases
_WRAPPERS = ("Failed to evaluate", "Failed to instantiate", "applying transform")  # how MONAI's messages begin


def start_run(*passed_on: str) -> None:
    """First thing in every workflow's ``initialize``: have errors end with their cause, and check the overrides.

    Args:
        passed_on: files beside the running one to which it passes its overrides on, such as the first stage's.
    """
    sys.excepthook = _traceback_with_cause
    if int(os.environ.get("RANK", "0")) > 0:  # set by torchrun: what all processes would say, the first alone says
        logging.disable(logging.INFO)
        for common in _COMMON:
            logging.getLogger(f"{__name__.partition('.')[0]}.{common}").setLevel(logging.ERROR)
    if not is_stage():
        warn_once.cache_clear()  # of an earlier run in this process, as in a notebook
    check_overrides(*passed_on)


def _traceback_with_cause(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """The cause in the last line: MONAI hides it pages above "Failed to evaluate ...", and some have several lines."""
    sys.__excepthook__(kind, error, traceback)
    cause = error
    while cause.__cause__ is not None and str(cause).startswith(_WRAPPERS):
        cause = cause.__cause__
    text = str(cause)
    # torch and MONAI make the traceback of a loader's process, or of a writer, a part of the message
    if text.startswith("Caught ") or "cannot find a suitable writer" in text:
        text = text.strip().splitlines()[-1]
    # of an extra, or of a bundle's folder beside MONAI and torch alone; what MONAI says of it ends in a traceback
    missing = re.search(r"No module named '([^'.]+)", text)
    if missing and find_spec(missing[1]) is None:
        package = {"ignite": "pytorch-ignite", "yaml": "pyyaml"}.get(missing[1], missing[1])
        cause, text = ModuleNotFoundError(), f"no module named {missing[1]!r}, which this needs: pip install {package}"
    line = f"{type(cause).__name__}: {' '.join(text.split())}"
    if cause is not error or "\n" in str(error):
        print(f"\nStopped: {line}", file=sys.stderr)
    end_by_error(line)


def say_weights(path: str) -> None:
    """Last thing in a training: where its weights are, and of which epoch."""
    if logger.isEnabledFor(logging.INFO):  # the first process alone, which wrote them
        logger.info(f"training is complete: weights of epoch {provenance(path)['epoch']} at {path}")


def ensure_first_stage(path: str, dataset_dir: str | None) -> None:
    """Train the first stage if its weights are missing, with the overrides that the running workflow was given.

    Runs ``train_autoencoder.yaml`` beside the running configuration, with the same overlays. Interrupted and run again,
    it resumes where it stopped; weights appear at ``path`` only when it is complete.

    Args:
        path: weights of the first stage.
        dataset_dir: the user's folder, or None for the embedded cohort.

    Raises:
        ValueError: the weights at ``path`` were made from an embedded cohort, but data of the user's are given.
        RuntimeError: there is no running workflow to take the configuration from.
    """
    if Path(path).is_file():
        made_from = str(provenance(path).get("data", ""))
        if dataset_dir is not None and made_from.startswith(EMBEDDED):
            raise ValueError(
                f"the first stage {path} was trained on the {made_from}, but dataset_dir is {dataset_dir}: move it "
                "away to train one on your data, or keep both with --models_dir and --output_dir"
            )
        logger.info(f"using the first stage {path}")
        return
    workflow = running(ConfigWorkflow)
    if workflow is None:
        raise RuntimeError(f"no first stage at {path}, and no running workflow to train it: run train_autoencoder.yaml")
    config = workflow.config_root_path / FIRST_STAGE_CONFIG
    logger.info(f"no first stage at {path}: training it with {config}")
    run_config([config], changed_settings("train.yaml"))
    wait_for_all()  # the first rank alone publishes the weights, which all load next


def run_config(files: Sequence[str | os.PathLike], overrides: Mapping[str, Any]) -> None:
    """Run configuration files, the later ones on top, inside a workflow that is already running.

    Args:
        files: paths; their bundle is the one that the first lies in.
        overrides: id -> value; those that the files do not have are left out.
    """
    stage = ConfigWorkflow(config_file=[str(file) for file in files], workflow_type="train")
    stage.parser.update({id: value for id, value in overrides.items() if id in stage.parser and id[0] != "_"})
    stage.initialize()
    stage.run()  # no finalize: what it would close, such as a process group, is still in use
