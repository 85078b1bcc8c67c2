"""What a bundle's configuration needs to know about where it runs: its own folder, its stages, its data."""

from __future__ import annotations

import difflib
import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch.distributed as dist
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.utils import ID_SEP_KEY

from medical_diffusion_components.data.datasets import EMBEDDED
from medical_diffusion_components.weights import provenance

__all__ = [
    "bundle_root",
    "changed_settings",
    "ensure_first_stage",
    "run_config",
    "start_run",
]

logger = logging.getLogger(__name__)

FIRST_STAGE_CONFIG = "train_autoencoder.yaml"
_WRAPPERS = ("Failed to evaluate", "Failed to instantiate", "applying transform")  # how MONAI's messages begin


def bundle_root() -> str:
    """Absolute path of the bundle whose configuration is being evaluated.

    MONAI sets no such path. The running ``ConfigWorkflow`` knows the folder of its configuration; without one (a bare
    ``ConfigParser``, as MONAI Label and ``ckpt_export`` use) the bundle is taken to be the current directory.
    """
    workflow = _running_workflow()
    folder = workflow.config_root_path.absolute().parent if workflow is not None else Path()
    return str(folder.resolve())


def _running_workflow() -> ConfigWorkflow | None:
    frame = sys._getframe()
    while frame is not None:
        # isinstance, since asking a ConfigParser for an attribute would make it resolve one
        if isinstance(frame.f_locals.get("self"), ConfigWorkflow):
            return frame.f_locals["self"]
        frame = frame.f_back
    return None


def ensure_first_stage(path: str, dataset_dir: str | None) -> None:
    """Train the first stage if its weights are missing, with the overrides that the running workflow was given.

    Runs ``train_autoencoder.yaml`` beside the running configuration, with the same overlays. Interrupted and run again,
    it goes on where it stopped; weights appear at ``path`` only when it is complete.

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
    workflow = _running_workflow()
    if workflow is None:
        raise RuntimeError(f"no first stage at {path}, and no running workflow to train it: run train_autoencoder.yaml")
    config = workflow.config_root_path / FIRST_STAGE_CONFIG
    logger.info(f"no first stage at {path}: training it with {config}")
    run_config([config], changed_settings("train.yaml"))
    if dist.is_initialized():
        dist.barrier()  # the first rank alone publishes the weights, which all load next


def changed_settings(file: str) -> dict[str, Any]:
    """What overlay files and the command line have changed or added in the running workflow: id -> raw value.

    Args:
        file: the configuration beside the running one that they are compared with.

    Raises:
        RuntimeError: there is no running workflow.
    """
    workflow = _running_workflow()
    if workflow is None:
        raise RuntimeError(f"no running workflow to compare with {file}")
    own = ConfigParser()
    own.read_config(str(workflow.config_root_path / file))
    own.parse()
    return dict(_differences(own.get(), workflow.parser.get()))


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


def start_run() -> None:
    """First thing in every workflow's ``initialize``: have errors end with their cause, and check the overrides."""
    sys.excepthook = _traceback_with_cause
    if int(os.environ.get("RANK", "0")) > 0:  # set by torchrun: what all processes would say, the first alone says
        logging.disable(logging.INFO)
    check_overrides()


def _traceback_with_cause(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """MONAI wraps errors in "Failed to evaluate ...", which hides the cause pages above: repeat it as the last line."""
    sys.__excepthook__(kind, error, traceback)
    cause = error
    while cause.__cause__ is not None and str(cause).startswith(_WRAPPERS):
        cause = cause.__cause__
    if cause is not error:
        text = str(cause)
        if text.startswith("Caught "):  # in a loader's process, whose traceback torch makes a part of the message
            text = text.strip().splitlines()[-1]
        print(f"\nStopped: {type(cause).__name__}: {' '.join(text.split())}", file=sys.stderr)


def check_overrides() -> None:
    """Refuse top-level ids that no configuration file of the bundle knows; MONAI would accept a typing error silently.

    Raises:
        ValueError: naming the unknown id and the nearest known one.
    """
    workflow = _running_workflow()
    if workflow is None:
        return
    files = [
        f
        for f in workflow.config_root_path.iterdir()
        if f.suffix in (".json", ".yaml", ".yml") and f.stem != "metadata"
    ]
    known = {id for file in files for id in ConfigParser.load_config_file(file)}
    for id in workflow.parser.get():
        if id not in known and not id.startswith("_"):
            nearest = difflib.get_close_matches(id, known, n=1)
            hint = f"; did you mean {nearest[0]}?" if nearest else ""
            raise ValueError(f"--{id} is no setting of {workflow.config_root_path}{hint}")


def config_text(id: str) -> str:
    """The text of a setting of the running workflow and of all that it refers to, to tell one configuration from another.

    Raises:
        RuntimeError: there is no running workflow.
    """
    workflow = _running_workflow()
    if workflow is None:
        raise RuntimeError(f"no running workflow whose {id} could be described")
    config, found = workflow.parser.get(), {}
    pending = [id]
    while pending:
        name = pending.pop()
        if name in config and name not in found:
            found[name] = json.dumps(config[name], sort_keys=True, default=str)
            pending += re.findall(r"@(\w+)", found[name])
    return json.dumps(found, sort_keys=True)


def bundle_version(root: str) -> str:
    """Name and version of the bundle at ``root``, for notes: ``adni_ldm 0.1.0``."""
    return f"{Path(root).name} {json.loads((Path(root) / 'configs' / 'metadata.json').read_text())['version']}"


def _differences(base: dict, config: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Ids and raw values in ``config`` that ``base`` has otherwise or not at all, as deep as both are dictionaries."""
    for key, value in config.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            yield from _differences(base[key], value, f"{prefix}{key}{ID_SEP_KEY}")
        elif key not in base or base[key] != value:
            yield f"{prefix}{key}", value
