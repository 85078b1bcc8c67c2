"""Which settings a result depends on: they are compared when a training is resumed, and kept with what is made."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.utils import ID_SEP_KEY

from medical_diffusion_components.workflow.lookup import running

__all__ = ["FOLDERS", "PLACES", "changes", "is_resolved_later", "settings", "used_ids", "without_places"]

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
PLACES = FOLDERS | {
    *("amp", "cache_rate", "checkpoint_minutes", "device", "look_seconds", "montage_interval", "num_devices"),
    *("num_workers", "save_interval", "writer"),
    *("num_inference_steps", "sampler"),  # of the montages of a training
    "tile_size",  # less memory, the same result up to rounding
    *("data_note", "knobs", "made_from", "structures"),  # what the weights' note says; it follows from the rest
}
_COUNTS = {"num_devices"}  # whatever gives it, a number: rates that scale with it are compared by value
_BATCH_SIZES = ("batch_size", "autoencoder_batch_size")  # of one process
_DISTRIBUTING = (  # blocks that spread their `module` over several processes, which stays the same
    "torch.nn.parallel.DistributedDataParallel",
    "medical_diffusion_components.networks.sync_batch_norms",
)
_ARITHMETIC: tuple[type[ast.AST], ...] = (
    *(ast.Expression, ast.BinOp, ast.UnaryOp, ast.operator, ast.unaryop, ast.Constant, ast.List, ast.Tuple),
    *(ast.Name, ast.Load, ast.Subscript),
)


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
    parser = running(ConfigParser)
    if parser is None:
        raise RuntimeError("no configuration is being evaluated whose settings could be given")
    workflow = running(ConfigWorkflow)
    run_id = workflow.run_id if workflow is not None else "run"
    config = parser.get()
    found: dict[str, Any] = {}
    for name in sorted(used_ids(config, [id or run_id]) - PLACES - {run_id}):
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


def used_ids(config: Mapping[str, Any], ids: Sequence[str]) -> set[str]:
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
    """Whether an id is an expression whose value takes nothing but numbers and knobs: evaluating it makes nothing.

    No id may refer to itself, directly or through others, which ``start_run`` has seen to.
    """
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


def is_resolved_later(value: Any) -> bool:
    """Whether a value is an expression or a reference, whose own value is known only once MONAI has resolved it."""
    return isinstance(value, str) and value.startswith(("$", "@", "%"))


def _is_plain(value: Any) -> bool:
    """A value that is no block, no expression and no reference."""
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return not (isinstance(value, dict) or is_resolved_later(value))


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
