"""What overlays and the command line change in a run, and the refusal of what would change nothing."""

from __future__ import annotations

import ast
import difflib
import functools
import inspect
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from pydoc import ErrorDuringImport, locate
from typing import Any

import numpy as np
import torch
from monai.bundle import ComponentLocator, ConfigComponent, ConfigParser, ConfigWorkflow
from monai.bundle.utils import ID_SEP_KEY

from medical_diffusion_components.distributed import own_device
from medical_diffusion_components.files import folder_setting
from medical_diffusion_components.weights import provenance
from medical_diffusion_components.workflow.lookup import is_stage, running
from medical_diffusion_components.workflow.run_settings import FOLDERS, used_ids

__all__ = ["changed_settings", "check_choice", "check_overrides", "check_unused"]

logger = logging.getLogger(__name__)

_FILES = {"conditions_table", "image", "manifest", "mask", "masks", "patients", "second_image"}
_SWITCHES = {"bool", "bool | None", "<class 'bool'>", "typing.Optional[bool]"}  # annotations
_OF_TWO_KINDS = {"mask_fill", "mask_patch_size", "percentages"}  # number or word, number or list, whole numbers or not
_POSITIVE = re.compile(
    r"^num_(?!workers|more_held_out|calibration_subjects)"
    r"|(?:spacing|compression|_size|channels|epochs|_steps|_every|_per_mask|resamples|jump_length|max_draws)$|^(?:val|save|montage)_interval$"
)
_ASCENDING = re.compile(r"_range$")  # two numbers
_FIXED_LENGTH = re.compile(r"(?:_size|_range|_interval|spacing|compression)$")  # lists: a number for each axis or end
_STANDS_FOR = re.compile(
    r"\$?@([\w#:]+)|\$(?:trained_(?:knob|spacing)\(@\w+, (?:'\w+', )?|float\(@\w+\.get\('\w+', )(.+?)\)+"
)
_WITH_HOME = {"dataset_dir", "masks", "patients", "raw_dir", "report_dir"}  # may begin with ~


def changed_settings(file: str) -> dict[str, Any]:
    """What overlay files and the command line have changed or added in the running workflow: id -> raw value.

    Args:
        file: the configuration beside the running one that they are compared with.

    Raises:
        RuntimeError: there is no running workflow.
    """
    workflow = running(ConfigWorkflow)
    if workflow is None:
        raise RuntimeError(f"no running workflow to compare with {file}")
    return dict(_differences(_read(workflow.config_root_path / file), workflow.parser.get()))


def check_choice(file: str, id: str, chosen: str, settings: Mapping[str, Sequence[str]]) -> None:
    """Refuse what was given for one choice where another one was made, such as the mask of an operation that takes none.

    Args:
        file: the running configuration, which says what stands in it by default.
        id: of the setting that chooses.
        chosen: one of the keys of ``settings``.
        settings: choice -> the ids that it alone uses.

    Raises:
        ValueError: no such choice; a setting of another one, by its name.
    """
    if chosen not in settings:
        raise ValueError(f"--{id} must be one of {', '.join(settings)}, got {chosen!r}")
    for choice, ids in settings.items():
        if choice != chosen:
            check_unused(file, ids, f"it is a setting of --{id} {choice}, not of {chosen}")


def check_unused(file: str, ids: Sequence[str], why: str) -> None:
    """Refuse settings that were given although the others leave them without any effect.

    Args:
        file: the running configuration, which says what stands in it by default.
        ids: of these settings; none where they have an effect.
        why: they have none.

    Raises:
        ValueError: one of them was given.
    """
    given = changed_settings(file) if ids else {}
    if useless := [id for id in ids if id in given]:
        raise ValueError(f"--{useless[0]} changes nothing in this run: {why}")


def _read(file: Path) -> dict[str, Any]:
    """A configuration as a running parser holds it: unevaluated, with macros and ids resolved."""
    parser = ConfigParser()
    parser.read_config(str(file))
    parser.parse()
    return parser.get()


def _differences(base: dict, config: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Ids and raw values in ``config`` that ``base`` has otherwise or not at all, as deep as both are dictionaries."""
    for key, value in config.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            yield from _differences(base[key], value, f"{prefix}{key}{ID_SEP_KEY}")
        elif key not in base or base[key] != value:
            yield f"{prefix}{key}", value


def check_overrides(*passed_on: str) -> None:
    """Refuse what nothing in the run uses; MONAI would accept it silently.

    An overlay of the bundle may hold settings for several files, so what an overlay says is accepted anywhere.

    Args:
        passed_on: files beside the running one whose settings count as used.

    Raises:
        ValueError: naming the id and the files that use it, or, where none does, the nearest known id; a folder or a switch
            that the command line has turned into something else; a number or a list given as another kind of value.
    """
    workflow = running(ConfigWorkflow)
    if workflow is None:
        return
    suffixes = (".json", ".yaml", ".yml") if find_spec("yaml") else (".json",)  # MONAI does without
    found = sorted(workflow.config_root_path.iterdir())
    paths = [path for path in found if path.suffix in suffixes and path.stem != "metadata"]
    files = {path.name: _content(path, path.stat().st_mtime_ns) for path in paths}
    config = workflow.parser.get()
    _check_folder_names(config)
    own = max((f for f in files.values() if "run" in f and f.keys() <= config.keys()), key=len, default={})
    _check_switches(config, own, workflow.parser.locator)
    _check_kinds(config, own)
    _check_device(config.get("device"))
    _remark_on_spacing(workflow.parser, own)
    overlays = [file for file in files.values() if "run" not in file]
    used = used_ids(config, [workflow.init_id, workflow.run_id, workflow.final_id])
    for file in [own, *(files[name] for name in passed_on)]:
        used |= used_ids(file, ["run"])
    for id, value in config.items():
        if id in used or id.startswith("_") or value == config[workflow.run_id]:  # run: "%training" is a copy by now
            continue
        if any(id in file and file[id] == value for file in [own, *overlays]):
            continue
        users = [name for name, file in files.items() if id in used_ids(file, ["run", "check"])]
        if users:
            raise ValueError(f"--{id} changes nothing in this run: it is a setting of {' and '.join(users)}")
        known = {known for file in files.values() for known in file}
        nearest = difflib.get_close_matches(id, known, n=1)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        raise ValueError(f"--{id} is no setting of {workflow.config_root_path}{hint}")


@functools.cache
def _content(path: Path, written: int) -> Mapping[str, Any]:
    """A configuration as it stands in its file, not to be changed: each run asks for all files of a bundle."""
    return ConfigParser.load_config_file(path)


def _check_folder_names(config: Mapping[str, Any]) -> None:
    """Folders whose names mean something else in a configuration: a number, an expression, a reference."""
    for id, value in config.items():
        if not _is_place(id) or value is None or isinstance(value, dict):
            continue
        if not isinstance(value, str):
            folder_setting(id, value)
        elif value[:1] in ("$", "@", "%") and (os.path.lexists(value) or _is_meant_as_name(value, config)):
            raise ValueError(
                f"--{id} {value}: a name that begins with {value[0]} is an expression or a reference in a configuration, "
                f"not a folder. Write ./ before it (--{id} './{value}'), or its whole path"
            )
        elif value.startswith("~") and id not in _WITH_HOME:
            raise ValueError(f"--{id} {value}: the shell expands ~ after a blank (--{id} {value}), not after =")
        elif (typed := _as_typed(id)) not in (None, value):
            advice = f"Write ./ before the name (--{id} './{typed}'), or its whole path"
            if "#" in str(typed):  # which MONAI reads as :: wherever it stands
                advice = "No name with # can be given: rename the folder, or give a link to it (ln -s)"
            raise ValueError(
                f"--{id} was given as {typed} and read as {value}: the command line takes away brackets and quotes, and "
                f"has a meaning of its own for #. {advice}"
            )


def _is_place(id: str) -> bool:
    """Whether a setting names a file or a folder."""
    return id.endswith("_dir") or id in FOLDERS | _FILES


def _as_typed(id: str) -> str | None:
    """What stands on the command line for a setting of this run, before anything has read it."""
    if is_stage():
        return None
    for arg, following in zip(sys.argv, [*sys.argv[1:], ""]):
        if arg == f"--{id}" or arg.startswith(f"--{id}="):
            return arg.partition("=")[2] or following
    return None


def _is_meant_as_name(value: str, config: Mapping[str, Any]) -> bool:
    """Whether a value in the form of an expression or a reference makes sense only as the name of a folder to be made.

    References with ``%`` are resolved before anything of this package runs.
    """
    if value[0] == "@":
        return value[1:].split(ID_SEP_KEY)[0] not in config
    return value[0] == "$" and value != "$None" and re.fullmatch(r"[\w ./~-]*", value[1:]) is not None


def _check_switches(
    config: Mapping[str, Any], defaults: Mapping[str, Any], locator: ComponentLocator | None = None
) -> None:
    """Switches that were given as something else: ``false`` is no word of Python, and any text counts as true."""
    known = {id: value for id, value, _ in _nested(defaults)}
    nested = list(_nested(config))
    for id, value, block in nested:
        if (
            isinstance(value, Mapping)
            or value in (None, False, True, known.get(id))
            or str(value)[:1] in ("$", "@", "%")
        ):
            continue
        takers = [(block, id)] + [(user, own) for own, reference, user in nested if reference == f"@{id}"]
        if (
            isinstance(known.get(id), bool)
            or (str(value).lower() in ("true", "false") and not _is_place(id))
            or (isinstance(value, str) and any(_takes_switch(user, own, locator) for user, own in takers))
        ):
            kind = "the text" if isinstance(value, str) else type(value).__name__
            raise ValueError(f"--{id} {value}: expected True or False, with a capital letter, got {kind} {value!r}")


def _check_kinds(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Numbers and lists that were given as something else, and whole numbers below 0: no setting has any.

    What a block is made with is its maker's to check: the angle of an augmentation may be 10 or [5.5, 10].
    """
    known = {id: value for id, value, _ in _nested(defaults)}
    nested = list(_nested(config))
    exempt = (*_OF_TWO_KINDS, *(id.removesuffix("_target_") for id, _, _ in nested if id.endswith("_target_")))
    for id, value, _ in nested:
        default = _plain_default(known.get(id), known)
        if id.startswith(exempt) or value in (None, default) or str(value)[:1] in ("$", "@", "%"):
            continue
        if expected := _misfit(id, value, default):
            example = "or None" if default is None else f"such as {default}"
            raise ValueError(f"--{id} {value}: expected {expected}, {example}; got {value!r}")


def _misfit(id: str, value: Any, default: Any) -> str:
    """What was expected of a value that is not of the kind of the default, or of which a name promises more; else empty."""
    positive = _POSITIVE.search(id) is not None
    if isinstance(default, list):
        numbers = {type(item) for item in default} <= {int, float}
        if isinstance(value, list | tuple) and not (_FIXED_LENGTH.search(id) and len(value) != len(default)):
            of_one = numbers and default and any(_misfit(id, item, default[0]) for item in value)
            if not of_one and not (_ASCENDING.search(id) and not value[0] < value[1]):
                return ""
        return "a list" + (" of two ascending numbers" if _ASCENDING.search(id) else " of numbers above 0" * positive)
    if default is None:
        return "a number above 0" if positive and type(value) in (int, float) and value <= 0 else ""
    if type(default) is int and not (type(value) is int and positive <= value < 1 << 63):
        return f"a whole number of at least {int(positive)}, and below 2^63"
    if type(default) is float and not (type(value) in (int, float) and (value > 0 or not positive)):
        return "a number above 0" if positive else "a number"
    return ""


def _check_device(device: Any) -> None:
    """A device that torch does not know, or that this machine does not have."""
    if isinstance(device, str) and device[:1] not in ("$", "@", "%"):
        try:
            torch.empty(0, device=device)
        except Exception as error:  # of one kind for each device
            cause = str(error).partition("\n")[0].rstrip(".")
            raise ValueError(
                f"--device {device}: expected one that is here, such as {own_device()}: {cause}"
            ) from error


def _remark_on_spacing(parser: ConfigParser, defaults: Mapping[str, Any]) -> None:
    """Voxels of another size than those that the weights were trained with: what is drawn keeps its number of voxels."""
    given, default = parser.get().get("spacing"), str(defaults.get("spacing"))
    if given != defaults.get("spacing") and default.startswith("$trained_spacing("):
        weights = parser.ref_resolver.get_resolved_content(id=re.findall(r"@(\w+)", default)[0])
        trained = provenance(str(weights)).get("spacing")
        if trained and not np.allclose(given, trained, rtol=0.01):
            logger.warning(
                f"--spacing {given}: the weights were trained with voxels of {[round(mm, 3) for mm in trained]} mm, so "
                "what is drawn has another size in the world than in training"
            )


def _plain_default(value: Any, known: Mapping[str, Any]) -> Any:
    """A default, also where another setting, or the value of a training, stands for it in the file."""
    while isinstance(value, str) and (found := _STANDS_FOR.fullmatch(value)):
        if not found[1] and "@" not in found[2]:
            return ast.literal_eval(found[2])
        value = known.get(found[1].replace("#", ID_SEP_KEY)) if found[1] else found[2]
    return value


def _nested(value: Any, prefix: str = "", block: Any = None) -> Iterator[tuple[str, Any, Any]]:
    """Every setting, however deep: id, raw value, and what it is directly in."""
    if prefix:
        yield prefix, value, block
    parts = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from _nested(part, f"{prefix}{ID_SEP_KEY}{key}" if prefix else str(key), value)


def _takes_switch(block: Any, id: str, locator: ComponentLocator | None) -> bool:
    """Whether what a block makes takes True or False under the last part of ``id``, by its signature or its parents'."""
    if not ConfigComponent.is_instantiable(block):
        return False
    made = ConfigComponent(block, locator=locator).resolve_module_name()
    try:
        made = locate(made) if isinstance(made, str) else made
    except ErrorDuringImport:  # MONAI says so, with the block's name, when it makes it
        return False
    makers = [vars(c).get("__init__", c) for c in made.__mro__] if isinstance(made, type) else [made]
    makers.append(getattr(made, "array_form", None))  # to which a dictionary transform passes on what it is made with
    found = next(filter(None, (_parameter(maker, id.split(ID_SEP_KEY)[-1]) for maker in makers)), None)
    if found is None:
        return False
    annotated = found.annotation is not found.empty
    return str(found.annotation) in _SWITCHES if annotated else isinstance(found.default, bool)


def _parameter(maker: Any, name: str) -> inspect.Parameter | None:
    """What a callable takes under a name, as far as its signature says it."""
    try:
        return inspect.signature(maker).parameters.get(name)
    except (TypeError, ValueError):  # nothing that can be called, or written in C without a signature
        return None
