"""Where a configuration is being evaluated: in which run, by which parser, in whose folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import FrameType
from typing import TypeVar

from monai.bundle import ConfigWorkflow

__all__ = ["bundle_modality", "bundle_root", "bundle_version", "is_stage", "running"]

_Kind = TypeVar("_Kind")


def running(kind: type[_Kind]) -> _Kind | None:
    """The innermost object of this kind that is at work: MONAI hands neither its workflow nor its parser to expressions."""
    return next(iter(_at_work(kind)), None)


def is_stage() -> bool:
    """Whether the running workflow was begun by another one, to which the command line belongs."""
    return len({id(workflow) for workflow in _at_work(ConfigWorkflow)}) > 1


def _at_work(kind: type[_Kind]) -> list[_Kind]:
    """Objects of this kind whose methods are being executed, innermost first."""
    found: list[_Kind] = []
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        # isinstance, since asking a ConfigParser for an attribute would make it resolve one
        if isinstance(frame.f_locals.get("self"), kind):
            found.append(frame.f_locals["self"])
        frame = frame.f_back
    return found


def bundle_root() -> str:
    """Absolute path of the bundle whose configuration is being evaluated.

    MONAI sets no such path. The running ``ConfigWorkflow`` knows the folder of its configuration; without one (a bare
    ``ConfigParser``, as MONAI Label and ``ckpt_export`` use) it is the bundle that this package came with, if it lies in
    one, and else taken to be the current directory.
    """
    workflow = running(ConfigWorkflow)
    beside = Path(__file__).parents[2]
    if workflow is not None:
        folder = workflow.config_root_path.absolute().parent
    else:
        folder = beside if (beside / "configs" / "metadata.json").is_file() else Path()
    return str(folder.resolve())


def bundle_version(root: str) -> str:
    """Name and version of the bundle at ``root``, for notes: ``adni_ldm 0.1.0``."""
    return f"{Path(root).name} {json.loads((Path(root) / 'configs' / 'metadata.json').read_text())['version']}"


def bundle_modality(root: str) -> str:
    """What ``pred`` of the bundle at ``root`` is an image of, by its metadata: ``CT`` or ``MR``, say."""
    metadata = json.loads((Path(root) / "configs" / "metadata.json").read_text())
    return str(metadata["network_data_format"]["outputs"]["pred"]["modality"])
