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

import torch
import torch.distributed as dist
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.utils import ID_SEP_KEY

from medical_diffusion_components.data.datasets import EMBEDDED, USERS_DATA, data_fingerprint, load_cases
from medical_diffusion_components.data.phantoms import PHANTOM_NOTICE, write_phantom_cohort
from medical_diffusion_components.data.splits import SPLITS
from medical_diffusion_components.data.template_cohort import TEMPLATE_COHORT_NOTICE, write_template_cohort
from medical_diffusion_components.distributed import join_processes, share
from medical_diffusion_components.weights import provenance

__all__ = [
    "bundle_root",
    "changed_settings",
    "describe_data",
    "ensure_first_stage",
    "join_processes",
    "own_device",
    "resolve_dataset",
    "run_config",
    "share",
    "smallest_training_split",
    "start_run",
    "trained_spacing",
]

logger = logging.getLogger(__name__)

FIRST_STAGE_CONFIG = "train_autoencoder.yaml"
_WRAPPERS = ("Failed to evaluate", "Failed to instantiate", "applying transform")  # how MONAI's messages begin
_RULE = "=" * 100


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


def resolve_dataset(
    dataset_dir: str | None,
    output_dir: str,
    num_subjects: int,
    size: tuple[int, int, int],
    cohort: str | None = "template",
    seed: int = 0,
) -> str:
    """The folder to train on: ``dataset_dir``, or, where none is given, the bundle's embedded cohort.

    The cohort is written below ``output_dir`` once and announced in a banner each time.

    Args:
        dataset_dir: the user's folder, or None.
        output_dir: where the bundle writes.
        num_subjects: how many subjects the cohort has.
        size: voxels (H, W, D) of each.
        cohort: ``template`` (warped copies of a brain template), an anatomy that ``write_phantom_cohort`` draws, or None
            for a bundle that has no cohort.
        seed: number of the cohort.

    Raises:
        FileNotFoundError, NotADirectoryError, ValueError: a folder that is given and cannot be used, which nothing
            replaces; or none is given and there is no cohort.
    """
    if dataset_dir is not None:
        for split in SPLITS:
            load_cases(dataset_dir, split)
        return str(dataset_dir)
    if cohort is None:
        raise ValueError(
            "no dataset_dir was given, and this bundle has no embedded cohort to take its place: give --dataset_dir, a "
            "folder that the bundle's `prepare` made, or one of NIfTI files of one size"
        )
    name, notice = f"{cohort} phantom cohort", PHANTOM_NOTICE
    if cohort == "template":
        name, notice = "template cohort", TEMPLATE_COHORT_NOTICE
    times = "x".join(str(s) for s in size)
    folder = Path(output_dir) / f"{name.replace(' ', '_')}_{num_subjects}_{times}_{seed}"
    if not dist.is_initialized() or dist.get_rank() == 0:
        print(f"{_RULE}\nNo dataset_dir was given: using the {EMBEDDED}{name}.\n{notice}\n{_RULE}", flush=True)
        if cohort == "template":
            write_template_cohort(folder, num_subjects, size, seed)
        else:
            write_phantom_cohort(folder, cohort, num_subjects, size, seed=seed)
    logger.info(f"using the {EMBEDDED}{name}: {notice}")
    if dist.is_initialized():
        dist.barrier()
    return str(folder)


def describe_data(dataset_dir: str | None, resolved_dir: str) -> dict[str, Any]:
    """What goes into the note beside weights about the data: kind and hash, no path and no identifier.

    Args:
        dataset_dir: what the user gave, or None.
        resolved_dir: the folder in use; an embedded cohort says in its ``dataset.json`` what it is.
    """
    cases = {split: load_cases(resolved_dir, split) for split in SPLITS}
    kind, notice = USERS_DATA, None
    if dataset_dir is None:
        cohort = json.loads((Path(resolved_dir) / "dataset.json").read_text())
        kind, notice = EMBEDDED + cohort["name"], cohort["description"]
    return {
        "data": kind,
        "notice": notice,
        "data_sha256": data_fingerprint([case for split in SPLITS for case in cases[split]]),
        "cases": {split: len(cases[split]) for split in SPLITS},
    }


def trained_spacing(weights: str, default: list[float]) -> list[float]:
    """Voxel spacing in mm of the volumes that the weights were trained on.

    Args:
        weights: path of the generator's weights; the note beside them is read.
        default: spacing of weights that came without a note.
    """
    return list(provenance(weights).get("spacing", default))


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


def own_device() -> torch.device:
    """The GPU of this process, counted by ``torchrun`` or the first one; without GPUs the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())


def smallest_training_split(folders: Mapping[str, str | None]) -> int:
    """How many training cases the folder with the fewest has.

    Args:
        folders: name of the setting -> folder.

    Raises:
        ValueError: a setting that was not given.
    """
    for name, folder in folders.items():
        if folder is None:
            raise ValueError(
                f"--{name} was not given: a folder of NIfTI volumes, such as inference.json of an *_ldm bundle writes"
            )
    return min(len(load_cases(folder, "training")) for folder in folders.values())


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
