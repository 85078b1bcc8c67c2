"""What overlays and the command line change in a run, and the refusal of what would change nothing."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.utils import ID_SEP_KEY

from medical_diffusion_components.workflow.lookup import running
from medical_diffusion_components.workflow.override_values import (
    check_circles,
    check_device,
    check_folder_names,
    check_kinds,
    check_switches,
    remark_on_spacing,
)
from medical_diffusion_components.workflow.run_settings import used_ids

__all__ = ["changed_settings", "check_choice", "check_overrides", "check_unused"]


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

    An overlay of the bundle may hold settings for several runs, so what an overlay says is accepted.

    Args:
        file: the running configuration, which says what stands in it by default.
        ids: of these settings; none where they have an effect.
        why: they have none.

    Raises:
        ValueError: one of them was given.
    """
    given = changed_settings(file) if ids else {}
    workflow = running(ConfigWorkflow)
    overlays = [] if workflow is None or not given else _overlays(_files(workflow))
    if useless := [id for id in ids if id in given and not any(said.get(id) == given[id] for said in overlays)]:
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
        ValueError: naming the id and the files that use it, or, where none does, the nearest known id; settings that refer
            to each other in a circle; a folder or a switch that the command line has turned into something else; a number
            or a list given as another kind of value.
    """
    workflow = running(ConfigWorkflow)
    if workflow is None:
        return
    files = _files(workflow)
    config = workflow.parser.get()
    check_circles(config)
    check_folder_names(config)
    # MONAI keeps no name of the running file: it is the largest whose ids are all there; of copies, the most alike
    whole = [file for file in files.values() if "run" in file and file.keys() <= config.keys()]
    own = max(whole, key=lambda f: (len(f), sum(config[id] == f[id] for id in f)), default={})
    check_switches(config, own, workflow.parser.locator)
    check_kinds(config, own)
    check_device(config.get("device"))
    remark_on_spacing(workflow.parser, own)
    overlays = _overlays(files)
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
            raise ValueError(f"--{id} changes nothing in this run: it is a setting of {', '.join(users)}")
        known = {known for file in files.values() for known in file}
        nearest = difflib.get_close_matches(id, known, n=1)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        raise ValueError(f"--{id} is no setting of {workflow.config_root_path}{hint}")


def _files(workflow: ConfigWorkflow) -> dict[str, Mapping[str, Any]]:
    """All configurations beside the running one, by the names of their files."""
    suffixes = (".json", ".yaml", ".yml") if find_spec("yaml") else (".json",)  # MONAI does without
    found = sorted(workflow.config_root_path.absolute().iterdir())
    paths = [path for path in found if path.suffix in suffixes and path.stem != "metadata"]
    return {path.name: _content(path, path.stat().st_mtime_ns) for path in paths}


def _overlays(files: Mapping[str, Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those of the configurations that run nothing by themselves."""
    return [file for file in files.values() if "run" not in file]


@functools.cache
def _content(path: Path, written: int) -> Mapping[str, Any]:
    """A configuration as it stands in its file, not to be changed: each run asks for all files of a bundle.

    ``path`` is absolute: files of two bundles may have been written in the same tick of the clock.
    """
    return ConfigParser.load_config_file(path)
