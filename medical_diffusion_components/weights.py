"""Weight files: plain state dicts, written whole or not at all, each with a note of what it was made from."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from medical_diffusion_components.files import file_hash, versions, write_atomically, write_json

__all__ = [
    "WeightsError",
    "load_tensors",
    "load_weights",
    "made_with",
    "provenance",
    "read_state",
    "save_tensors",
    "save_weights",
    "trained_spacing",
    "unwrap",
    "with_weights",
]


Module = TypeVar("Module", bound=nn.Module)


class WeightsError(ValueError):
    """A weight file that is missing, damaged, or made for another architecture."""


def unwrap(item: Any) -> Any:
    """The module inside a ``DistributedDataParallel``; anything else as it is."""
    return item.module if isinstance(item, DistributedDataParallel) else item


def save_tensors(content: Any, path: Path) -> None:
    """``torch.save`` whose bytes follow from ``content`` alone: given a path, it would write the file's name into it."""
    with open(path, "wb") as file:
        torch.save(content, file)


def load_tensors(path: str | os.PathLike) -> Any:
    """``torch.load`` that runs no code and compares every record with its checksum, which torch does not.

    Raises:
        Exception: of many kinds, when the file is damaged or holds more than tensors and plain values.
    """
    with zipfile.ZipFile(path) as archive:
        broken = archive.testzip()
    if broken is not None:
        raise zipfile.BadZipFile(f"record {broken} is damaged")
    return torch.load(path, map_location="cpu", weights_only=True)


def save_weights(module: nn.Module, path: str | os.PathLike, made_from: Mapping) -> Path:
    """Write ``module.state_dict()`` to ``path`` and a note beside it (``model.pt`` -> ``model.json``).

    Args:
        module: what to save; its tensors are moved to the CPU.
        path: where to.
        made_from: what the weights were made from (data, settings, metrics); hash and versions are added.
    """
    state = {name: tensor.detach().cpu() for name, tensor in module.state_dict().items()}
    path = write_atomically(path, lambda temporary: save_tensors(state, temporary))
    note = {"sha256": file_hash(path), **made_from, "versions": versions()}
    write_json(path.with_suffix(".json"), note)
    return path


def read_state(path: str | os.PathLike) -> dict[str, Tensor]:
    """The plain state dict in a file of weights.

    Raises:
        WeightsError: the file is missing, damaged, or holds anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"expected weights at {path}, but there is no such file")
    try:
        state = load_tensors(path)
    except Exception as error:
        cause = str(error).partition("\n")[0].partition(". ")[0]  # what follows is advice to trust the file
        raise WeightsError(
            f"{path} cannot be read as weights, it is damaged or holds more than tensors: {type(error).__name__}: {cause}"
        ) from error
    if not isinstance(state, dict) or not all(torch.is_tensor(tensor) for tensor in state.values()):
        raise WeightsError(f"{path} holds no plain state dict; a checkpoint of a training, for one, is no weight file")
    return state


def load_weights(module: nn.Module, path: str | os.PathLike) -> str:
    """Load a plain state dict into ``module``, every tensor of it, and return the file's SHA-256.

    Raises:
        WeightsError: the file is missing or damaged, or its tensors are not those of ``module``.
    """
    state = read_state(path)
    for name, part in module.named_modules():  # parts whose shape is learned from the weights
        if hasattr(part, "adapt_to_weights"):
            part.adapt_to_weights(state, f"{name}." if name else "")
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if wanted != found:
        raise WeightsError(f"{path} is from another architecture than the configured {_difference(wanted, found)}")
    module.load_state_dict(state)
    return file_hash(path)


def with_weights(module: Module, path: str | os.PathLike) -> Module:
    """``module`` itself, once it has the weights at ``path``; errors are those of :func:`load_weights`."""
    load_weights(module, path)
    return module


def _difference(wanted: dict, found: dict) -> str:
    shapes = [f"{n}: expected {wanted[n]}, got {found[n]}" for n in wanted if n in found and wanted[n] != found[n]]
    missing = [n for n in wanted if n not in found]
    extra = [n for n in found if n not in wanted]
    parts = [
        f"{len(items)} {what} (such as {'; '.join(items[:3])})"
        for what, items in (("of other shape", shapes), ("missing", missing), ("unexpected", extra))
        if items
    ]
    return "one; tensors: " + ", ".join(parts)


def provenance(path: str | os.PathLike) -> dict:
    """The note beside the weights at ``path``, or an empty one if the weights came without."""
    note = Path(path).with_suffix(".json")
    return json.loads(note.read_text()) if note.is_file() else {}


def made_with(path: str | os.PathLike) -> dict[str, Any]:
    """For the note of what the weights at ``path`` have made: their hash, what they were trained on, and versions.

    With it stands the window of the training volumes, if preparation fixed one.
    """
    made = provenance(path)
    return {
        "weights_sha256": file_hash(path),
        "trained_on": made.get("data", "unknown: the weights came without a note"),
        "notice": made.get("notice"),
        **({"window": made["window"]} if "window" in made else {}),
        "versions": versions(),
    }


def trained_spacing(weights: str, default: list[float]) -> list[float]:
    """Voxel spacing in mm of the volumes that the weights were trained on.

    Args:
        weights: path of the generator's weights; the note beside them is read.
        default: spacing of weights that came without a note.
    """
    return list(provenance(weights).get("spacing", default))
