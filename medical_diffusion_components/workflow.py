"""What a bundle's configuration needs to know about where it runs: its own folder, its stages, its data."""

from __future__ import annotations

import ast
import difflib
import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, TypeVar

from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.utils import ID_SEP_KEY

from medical_diffusion_components.data.datasets import EMBEDDED
from medical_diffusion_components.distributed import end_by_error, wait_for_all
from medical_diffusion_components.files import folder_setting
from medical_diffusion_components.weights import provenance

__all__ = [
    "FOLDERS",
    "PLACES",
    "bundle_modality",
    "bundle_root",
    "bundle_version",
    "changed_settings",
    "changes",
    "ensure_first_stage",
    "run_config",
    "settings",
    "start_run",
    "without_places",
]

logger = logging.getLogger(__name__)

FIRST_STAGE_CONFIG = "train_autoencoder.yaml"
# Where something lies. What lies there counts by its hash, not by its path.
FOLDERS = frozenset(
    {
        "bundle_root",
        "data_dir",
        "dataset_dir",
        "first_stage_weights",
        "generator",
        "models_dir",
        "output_dir",
        "pretrained_weights",
        "report_dir",
        "samples_dir",
        "stage_dir",
        "weights",
    }
)
# Settings on which nothing that is learned depends: where it runs and how fast, how often it saves and draws. val_interval
# is not among them: the published weights are the best of those that were validated.
_COUNTS = {"num_devices"}  # whatever gives it, a number: rates that scale with it are compared by value
PLACES = FOLDERS | {
    "amp",
    "cache_rate",
    "checkpoint_minutes",
    "device",
    "look_seconds",
    "montage_interval",
    "num_devices",
    "num_inference_steps",  # of the montages of a training, as is the sampler
    "num_workers",
    "sampler",
    "save_interval",
    "writer",
    # what the weights' note says; it follows from the rest
    "data_note",
    "knobs",
    "made_from",
}
_BATCH_SIZES = ("batch_size", "autoencoder_batch_size")  # of one process
_DISTRIBUTING = (  # blocks that spread their `module` over several processes, which stays the same
    "torch.nn.parallel.DistributedDataParallel",
    "medical_diffusion_components.networks.sync_batch_norms",
)
_ARITHMETIC: tuple[type[ast.AST], ...] = (
    *(ast.Expression, ast.BinOp, ast.UnaryOp, ast.operator, ast.unaryop, ast.Constant, ast.List, ast.Tuple),
    *(ast.Name, ast.Load, ast.Subscript),
)
_Kind = TypeVar("_Kind")
_WRAPPERS = ("Failed to evaluate", "Failed to instantiate", "applying transform")  # how MONAI's messages begin


def bundle_root() -> str:
    """Absolute path of the bundle whose configuration is being evaluated.

    MONAI sets no such path. The running ``ConfigWorkflow`` knows the folder of its configuration; without one (a bare
    ``ConfigParser``, as MONAI Label and ``ckpt_export`` use) it is the bundle that this package came with, if it lies in
    one, and else taken to be the current directory.
    """
    workflow = _running(ConfigWorkflow)
    beside = Path(__file__).parents[1]
    if workflow is not None:
        folder = workflow.config_root_path.absolute().parent
    else:
        folder = beside if (beside / "configs" / "metadata.json").is_file() else Path()
    return str(folder.resolve())


def _running(kind: type[_Kind]) -> _Kind | None:
    """The innermost object of this kind that is at work: MONAI hands neither its workflow nor its parser to expressions."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        # isinstance, since asking a ConfigParser for an attribute would make it resolve one
        if isinstance(frame.f_locals.get("self"), kind):
            return frame.f_locals["self"]
        frame = frame.f_back
    return None


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
    workflow = _running(ConfigWorkflow)
    if workflow is None:
        raise RuntimeError(f"no first stage at {path}, and no running workflow to train it: run train_autoencoder.yaml")
    config = workflow.config_root_path / FIRST_STAGE_CONFIG
    logger.info(f"no first stage at {path}: training it with {config}")
    run_config([config], changed_settings("train.yaml"))
    wait_for_all()  # the first rank alone publishes the weights, which all load next


def changed_settings(file: str) -> dict[str, Any]:
    """What overlay files and the command line have changed or added in the running workflow: id -> raw value.

    Args:
        file: the configuration beside the running one that they are compared with.

    Raises:
        RuntimeError: there is no running workflow.
    """
    workflow = _running(ConfigWorkflow)
    if workflow is None:
        raise RuntimeError(f"no running workflow to compare with {file}")
    return dict(_differences(_read(workflow.config_root_path / file), workflow.parser.get()))


def _read(file: Path) -> dict[str, Any]:
    """A configuration as a running parser holds it: unevaluated, with macros and ids resolved."""
    parser = ConfigParser()
    parser.read_config(str(file))
    parser.parse()
    return parser.get()


def settings(id: str | None = None, **facts: Any) -> dict[str, Any]:
    """Everything that the running configuration sets and its result depends on: all of it but :data:`PLACES`.

    That is every id that the run refers to, blocks included, down to single values: ``loss::l1_weight -> 4.0``.
    Expressions are compared as text, and by their value where they are plain arithmetic or name another knob. The
    number of epochs is "any" while the learning rate is constant (``final_lr`` 1 or absent): such a training may become
    longer. The batch size of one process is left out: whoever compares settings knows the global one.

    Args:
        id: give what this id and all that it refers to set, in place of the whole run.
        facts: added under these names; hashes stand in for what lies in the places.

    Returns:
        JSON values by name.

    Raises:
        RuntimeError: no configuration is being evaluated.
    """
    parser = _running(ConfigParser)
    if parser is None:
        raise RuntimeError("no configuration is being evaluated whose settings could be given")
    workflow = _running(ConfigWorkflow)
    run_id = workflow.run_id if workflow is not None else "run"
    config = parser.get()
    found: dict[str, Any] = {}
    for name in sorted(_used(config, [id or run_id]) - PLACES - {run_id}):
        value = config[name]
        if _is_arithmetic(config, name) or str(value).startswith("$trained_knob("):  # a knob, by the weights' note
            value = parser.ref_resolver.get_resolved_content(id=name)
        found.update(_leaves(name, value))
    length = f"train{ID_SEP_KEY}trainer{ID_SEP_KEY}max_epochs"
    for prefix in ("", "autoencoder_"):
        if f"{prefix}epochs" in found and found.get(f"{prefix}final_lr", 1) == 1:
            counted = [name for name in (f"{prefix}epochs", length) if isinstance(found.get(name), int)]
            found.update(dict.fromkeys(counted, "any"))
    for name in _BATCH_SIZES:
        found.pop(name, None)
    return json.loads(json.dumps({**found, **facts}, default=str))


def without_places(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that a result depends on, as JSON gives them back: id -> value, without :data:`PLACES`."""
    kept = {id: value for id, value in settings.items() if not PLACES & {id, re.split("#|::", id)[0]}}
    return json.loads(json.dumps(kept, default=str))


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The settings that differ, each with both values: ``seed was 0, now 1; ...``; empty if none does."""

    def said(values: Mapping[str, Any], name: str) -> str:
        text = str(values[name]) if name in values else "not set"
        return text if len(text) <= 120 else f"{text[:120]}..."

    missing = object()
    names = sorted(name for name in before.keys() | now.keys() if before.get(name, missing) != now.get(name, missing))
    return "; ".join(f"{name} was {said(before, name)}, now {said(now, name)}" for name in names)


def _used(config: Mapping[str, Any], ids: Sequence[str]) -> set[str]:
    """The top-level ids that ``ids`` refer to, directly or through others, and themselves."""
    found: set[str] = set()
    pending = list(ids)
    while pending:
        id = pending.pop()
        if id in config and id not in found:
            found.add(id)
            pending += re.findall(r"[@%](\w+)", json.dumps(config[id], default=str))
    return found


def _is_arithmetic(config: Mapping[str, Any], id: str) -> bool:
    """Whether an id is an expression whose value takes nothing but numbers and knobs: evaluating it makes nothing."""
    value = config.get(id)
    if not isinstance(value, str) or value[:1] not in ("$", "@") or "#" in value:
        return False
    names = re.findall(r"@(\w+)", value)
    try:
        tree = ast.parse(re.sub(r"@(\w+)", r"_id_\1", value.removeprefix("$").strip()), mode="eval")
    except SyntaxError:
        return False
    nodes = list(ast.walk(tree))
    return (
        all(isinstance(node, _ARITHMETIC) for node in nodes)
        and {node.id for node in nodes if isinstance(node, ast.Name)} == {f"_id_{name}" for name in names}
        and all(_is_plain(config.get(name)) or name in _COUNTS or _is_arithmetic(config, name) for name in names)
    )


def _is_plain(value: Any) -> bool:
    """A value that is no block, no expression and no reference."""
    if isinstance(value, str):
        return value[:1] not in ("$", "@", "%")
    return all(map(_is_plain, value)) if isinstance(value, list) else not isinstance(value, dict)


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Single values of a block by their names; a list of plain values is one."""
    while isinstance(value, dict) and value.get("_target_") in _DISTRIBUTING:
        value = value["module"]
    if name.split(ID_SEP_KEY)[-1] in FOLDERS:
        return
    if isinstance(value, dict):
        parts = list(value.items())
    elif isinstance(value, list) and any(isinstance(part, dict) for part in value):
        parts = list(enumerate(value))
    else:
        yield name, value
        return
    for key, part in parts:
        yield from _leaves(f"{name}{ID_SEP_KEY}{key}", part)


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


def start_run(*passed_on: str) -> None:
    """First thing in every workflow's ``initialize``: have errors end with their cause, and check the overrides.

    Args:
        passed_on: files beside the running one to which it passes its overrides on, such as the first stage's.
    """
    sys.excepthook = _traceback_with_cause
    if int(os.environ.get("RANK", "0")) > 0:  # set by torchrun: what all processes would say, the first alone says
        logging.disable(logging.INFO)
    check_overrides(*passed_on)


def _traceback_with_cause(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """The cause in the last line: MONAI hides it pages above "Failed to evaluate ...", and some have several lines."""
    sys.__excepthook__(kind, error, traceback)
    cause = error
    while cause.__cause__ is not None and str(cause).startswith(_WRAPPERS):
        cause = cause.__cause__
    text = str(cause)
    if text.startswith("Caught "):  # in a loader's process, whose traceback torch makes a part of the message
        text = text.strip().splitlines()[-1]
    line = f"{type(cause).__name__}: {' '.join(text.split())}"
    if cause is not error or "\n" in str(error):
        print(f"\nStopped: {line}", file=sys.stderr)
    end_by_error(line)


def check_overrides(*passed_on: str) -> None:
    """Refuse what nothing in the run uses; MONAI would accept it silently.

    An overlay of the bundle may hold settings for several files, so what an overlay says is accepted anywhere.

    Args:
        passed_on: files beside the running one whose settings count as used.

    Raises:
        ValueError: naming the id and the files that use it, or, where none does, the nearest known id; a folder or a switch
            that the command line has turned into something else.
    """
    workflow = _running(ConfigWorkflow)
    if workflow is None:
        return
    paths = workflow.config_root_path.iterdir()
    suffixes = (".json", ".yaml", ".yml") if find_spec("yaml") else (".json",)  # MONAI does without
    files = {
        p.name: ConfigParser.load_config_file(p) for p in sorted(paths) if p.suffix in suffixes and p.stem != "metadata"
    }
    config = workflow.parser.get()
    _check_folder_names(config)
    running = max((f for f in files.values() if "run" in f and f.keys() <= config.keys()), key=len, default={})
    _check_switches(config, running)
    overlays = [file for file in files.values() if "run" not in file]
    used = _used(config, [workflow.init_id, workflow.run_id, workflow.final_id])
    for file in [running, *(files[name] for name in passed_on)]:
        used |= _used(file, ["run"])
    for id, value in config.items():
        if id in used or id.startswith("_") or value == config[workflow.run_id]:  # run: "%training" is a copy by now
            continue
        if any(id in file and file[id] == value for file in [running, *overlays]):
            continue
        users = [name for name, file in files.items() if id in _used(file, ["run", "check"])]
        if users:
            raise ValueError(f"--{id} changes nothing in this run: it is a setting of {' and '.join(users)}")
        known = {known for file in files.values() for known in file}
        nearest = difflib.get_close_matches(id, known, n=1)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        raise ValueError(f"--{id} is no setting of {workflow.config_root_path}{hint}")


def _check_folder_names(config: Mapping[str, Any]) -> None:
    """Folders whose names mean something else in a configuration: a number, an expression, a reference."""
    for id, value in config.items():
        if not (id.endswith("_dir") or id in FOLDERS) or value is None or isinstance(value, dict):
            continue
        if not isinstance(value, str):
            folder_setting(id, value)
        elif value[:1] in ("$", "@", "%") and (os.path.lexists(value) or _is_meant_as_name(value, config)):
            raise ValueError(
                f"--{id} {value}: a name that begins with {value[0]} is an expression or a reference in a configuration, "
                f"not a folder. Write ./ before it (--{id} './{value}'), or its whole path"
            )


def _check_switches(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Switches that the command line gave as text: ``false`` is no word of Python, and any text counts as true."""
    for id, value in config.items():
        if not isinstance(value, str) or value[:1] in ("$", "@", "%"):
            continue
        if isinstance(defaults.get(id), bool) or value.lower() in ("true", "false"):
            raise ValueError(f"--{id} {value}: expected True or False, with a capital letter, got the text {value!r}")


def _is_meant_as_name(value: str, config: Mapping[str, Any]) -> bool:
    """Whether a value in the form of an expression or a reference makes sense only as the name of a folder to be made.

    References with ``%`` are resolved before anything of this package runs.
    """
    if value[0] == "@":
        return value[1:].split(ID_SEP_KEY)[0] not in config
    return value[0] == "$" and value != "$None" and re.fullmatch(r"[\w ./~-]*", value[1:]) is not None


def bundle_version(root: str) -> str:
    """Name and version of the bundle at ``root``, for notes: ``adni_ldm 0.1.0``."""
    return f"{Path(root).name} {json.loads((Path(root) / 'configs' / 'metadata.json').read_text())['version']}"


def bundle_modality(root: str) -> str:
    """What ``pred`` of the bundle at ``root`` is an image of, by its metadata: ``CT`` or ``MR``, say."""
    metadata = json.loads((Path(root) / "configs" / "metadata.json").read_text())
    return str(metadata["network_data_format"]["outputs"]["pred"]["modality"])


def _differences(base: dict, config: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Ids and raw values in ``config`` that ``base`` has otherwise or not at all, as deep as both are dictionaries."""
    for key, value in config.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            yield from _differences(base[key], value, f"{prefix}{key}{ID_SEP_KEY}")
        elif key not in base or base[key] != value:
            yield f"{prefix}{key}", value
