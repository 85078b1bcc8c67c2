"""Weight files: plain state dicts, written whole or not at all, each with a note of what it was made from."""

from __future__ import annotations

import json
import logging
import os
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from medical_diffusion_components.distributed import process_rank
from medical_diffusion_components.files import file_hash, versions, write_atomically, write_json

__all__ = [
    "AT_HOME",
    "EMBEDDED",
    "HASHES_AT_HOME",
    "RELEASED",
    "WeightsError",
    "load_tensors",
    "load_weights",
    "made_with",
    "noted_knobs",
    "notes_beside",
    "own_or_released",
    "provenance",
    "read_state",
    "save_tensors",
    "save_weights",
    "tensor_differences",
    "trained_knob",
    "trained_spacing",
    "unwrap",
    "with_weights",
    "write_weights",
]

logger = logging.getLogger(__name__)

EMBEDDED = "embedded "  # first word of what a note says of an embedded cohort, which is nobody's data
HASHES_AT_HOME = ("data_sha256", "training_sha256", "held_out_sha256", "conditions_sha256")  # over anybody's data
RELEASED = "released"  # folder of a bundle with the weights that it comes with
AT_HOME = ".at_home.json"  # ending of the note that stays where the data are
_NOTES = (".json", AT_HOME)
# Knobs that are younger than notes with knobs, at the value that leaves networks as they were before.
_ADDED_LATER: dict[str, Any] = {"declared_conditions": None, "denoiser_patch": [1, 1, 1]}
_KNOBS = "knobs"  # in a note: the knobs of the training that whatever uses the weights must repeat
_RULE = "=" * 100

Module = TypeVar("Module", bound=nn.Module)


class WeightsError(ValueError):
    """A weight file that is missing, damaged, or made for another architecture."""


def unwrap(item: Any) -> Any:
    """The module inside a ``DistributedDataParallel``; anything else as it is."""
    return item.module if isinstance(item, DistributedDataParallel) else item


def save_tensors(content: Any, path: Path) -> None:
    """``torch.save`` whose bytes follow from ``content`` alone: given a path, it would write the file's name into it."""
    with open(path, "wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # as which torch reports a full disk, in words about positions
            raise OSError(str(error.__context__ or error)) from error


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

    Hashes over anybody's data, by which others could test a guess at who was in it, go into a note of their own
    (``model.at_home.json``), which need not travel with the weights.

    Args:
        module: what to save; its tensors are moved to the CPU.
        path: where to.
        made_from: what the weights were made from (data, settings, metrics); hash and versions are added.
    """
    state = {name: tensor.detach().cpu() for name, tensor in module.state_dict().items()}
    notes = {".json": {**made_from, "versions": versions()}}
    if not str(made_from.get("data")).startswith(EMBEDDED):
        note = notes[".json"]
        notes[AT_HOME] = {name: note.pop(name) for name in HASHES_AT_HOME if name in note}
    return write_weights(path, lambda temporary: save_tensors(state, temporary), notes)


def write_weights(
    path: str | os.PathLike, write: Callable[[Path], object], notes: Mapping[str, Mapping[str, Any]]
) -> Path:
    """Write weights and their notes so that a process may be killed at any moment: the old pair is there, or the new one.

    The new notes wait under another name until the new weights are in place. :func:`provenance` takes a waiting note where
    it is that of the weights.

    Args:
        path: of the weights.
        write: called with the path to write the weights to.
        notes: ending, ``.json`` or ``.at_home.json`` -> note, to which the hash of the weights is added.
    """
    path = Path(path)
    for ending in filter(partial(_waits, path), _NOTES):  # of a killed process; the new ones are to wait there next
        os.replace(_waiting(path, ending), path.with_suffix(ending))

    def write_both(temporary: Path) -> None:
        write(temporary)
        digest = file_hash(temporary)
        for ending, note in notes.items():
            write_json(_waiting(path, ending), {"sha256": digest, **note})

    write_atomically(path, write_both)
    for ending in notes:
        os.replace(_waiting(path, ending), path.with_suffix(ending))
    return path


def _waiting(path: Path, ending: str) -> Path:
    """Where a note is until its weights are in place."""
    return path.with_name(f".{path.stem}{ending}.new")


def _waits(path: Path, ending: str) -> bool:
    """Whether the weights are in place and their note is not."""
    waiting = _waiting(path, ending)
    return waiting.is_file() and path.is_file() and _read_note(waiting).get("sha256") == file_hash(path)


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


def load_weights(
    module: nn.Module, path: str | os.PathLike, knobs: Mapping[str, Any] | None = None, part: str = ""
) -> str:
    """Load a plain state dict into ``module``, every tensor of it, and return the file's SHA-256.

    Weights that came with the bundle are announced in a banner, so that nobody takes them for a training of their own.

    Args:
        module: gets the weights.
        path: of the weights; the note beside them is read.
        knobs: those that ``module`` was built with, to be held against those of the training; None compares shapes alone.
        part: name of the part of the file's network that ``module`` is, such as ``first_stage``; empty: all of it.

    Raises:
        WeightsError: the file is missing or damaged, it was trained with other knobs, its tensors are not those of
            ``module``, or the note beside it was written for another file.
    """
    prefix = f"{part}." if part else ""
    state = {n.removeprefix(prefix): tensor for n, tensor in read_state(path).items() if n.startswith(prefix)}
    digest = file_hash(path)
    if provenance(path).get("sha256", digest) != digest:
        raise WeightsError(
            f"{path}: the note beside it is of other weights; put its own note there, or move this one away"
        )
    _check_knobs(path, knobs or {})
    for name, child in module.named_modules():  # parts whose shape is learned from the weights
        if hasattr(child, "adapt_to_weights"):
            child.adapt_to_weights(state, f"{name}." if name else "")
    if difference := tensor_differences(module.state_dict(), state):
        note = Path(path).with_suffix(".json")
        advice = "" if note.is_file() else f"; {note}, which says how its network was built, is missing: put it there"
        raise WeightsError(
            f"{path} is from another architecture than the configured one{advice}; tensors: {difference}"
        )
    module.load_state_dict(state)
    if knobs and not provenance(path):
        logger.warning(f"{path} came without its note: spacing, axes and classes are taken from the configuration")
    if Path(path).parent.name == RELEASED and process_rank() == 0:
        _announce(Path(path))
    return digest


def _announce(path: Path) -> None:
    note = provenance(path)
    text = f"These weights came with the bundle: {path}\nThey were trained on the {note.get('data', 'unknown data')}."
    text += f" {note['notice']}" if note.get("notice") else ""
    print(f"{_RULE}\n{text}\nWeights of your own in models/ take their place.\n{_RULE}", flush=True)


def with_weights(module: Module, path: str | os.PathLike) -> Module:
    """``module`` itself, once it has the weights at ``path``; errors are those of :func:`load_weights`."""
    load_weights(module, path)
    return module


def tensor_differences(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """Which names and shapes of two state dicts differ, in words; nothing if none do."""
    pairs = [(name, tuple(wanted[name].shape), tuple(found[name].shape)) for name in wanted if name in found]
    shapes = [f"{name}: expected {here}, got {there}" for name, here, there in pairs if here != there]
    missing = [name for name in wanted if name not in found]
    extra = [name for name in found if name not in wanted]
    return ", ".join(
        f"{len(items)} {what} (such as {'; '.join(items[:3])})"
        for what, items in (("of other shape", shapes), ("missing", missing), ("unexpected", extra))
        if items
    )


def provenance(path: str | os.PathLike) -> dict:
    """The note beside the weights at ``path``, or an empty one if the weights came without.

    Hashes of the data belong to it where the note that keeps them is at hand.

    Raises:
        WeightsError: a note that is damaged.
    """
    notes = notes_beside(path)
    note, hashes = notes.get(".json", {}), notes.get(AT_HOME, {})
    return note | (hashes if hashes.get("sha256") == note.get("sha256") else {})


def notes_beside(path: str | os.PathLike) -> dict[str, dict]:
    """Ending -> note of the weights at ``path``, as :func:`write_weights` takes them.

    Raises:
        WeightsError: a note that is damaged.
    """
    path, found = Path(path), {}
    for ending in _NOTES:
        if _waits(path, ending):
            found[ending] = _read_note(_waiting(path, ending))
        elif path.with_suffix(ending).is_file():
            found[ending] = _read_note(path.with_suffix(ending))
    return found


def _read_note(file: Path) -> dict:
    try:
        note = json.loads(file.read_bytes())
    except ValueError:
        note = None
    if not isinstance(note, dict) or not isinstance(note.get(_KNOBS) or {}, dict):
        raise WeightsError(
            f"{file}: expected the note that was written with the weights, it is damaged or another file"
        )
    return note


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


def own_or_released(models_dir: str, bundle_root: str, name: str = "model.pt") -> str:
    """Path of the weights to use: the user's own in ``models``, or those that came with the bundle where there are none.

    A ``models_dir`` elsewhere is one that somebody has chosen: nothing takes the place of what is missing there.

    Args:
        models_dir: where training puts the weights.
        bundle_root: folder of the bundle.
        name: of the file in either folder.

    Returns:
        the path in ``models_dir`` also where neither folder has the file.
    """
    own, released = Path(models_dir) / name, Path(bundle_root) / RELEASED / name
    by_default = Path(models_dir).resolve() == (Path(bundle_root) / "models").resolve()
    return str(released if by_default and not own.is_file() and released.is_file() else own)


def trained_knob(weights: str | os.PathLike, knob: str, default: Any) -> Any:
    """The value that a knob had when the weights were trained, so that networks of any size are built as they were.

    Args:
        weights: their path; the note beside them is read.
        knob: id in the training's configuration.
        default: for weights whose note does not say it, or before there are any.
    """
    return noted_knobs(provenance(weights)).get(knob, default)


def noted_knobs(note: Mapping[str, Any]) -> dict[str, Any]:
    """The knobs of the training that a note names, and those that came later as they were in effect; empty without any.

    Args:
        note: beside weights, see :func:`provenance`.
    """
    return {**_ADDED_LATER, **note[_KNOBS]} if note.get(_KNOBS) else {}


def _check_knobs(weights: str | os.PathLike, knobs: Mapping[str, Any]) -> None:
    """Refuse knobs that the weights were not trained with; others that their note does not name are not compared.

    Raises:
        WeightsError: naming each knob with both values.
    """
    trained = noted_knobs(provenance(weights))
    given = json.loads(json.dumps(dict(knobs), default=str))
    other = [f"{id} {trained[id]}, not {given[id]}" for id in given if id in trained and trained[id] != given[id]]
    if other:
        raise WeightsError(
            f"{weights} was trained with {', '.join(other)}: leave these settings out, they are read from the note beside "
            "the weights; or give the --models_dir of weights that were trained with them"
        )


def trained_spacing(weights: str, default: list[float]) -> list[float]:
    """Voxel spacing in mm of the volumes that the weights were trained on.

    Args:
        weights: path of the generator's weights; the note beside them is read.
        default: spacing of weights that came without a note.
    """
    return list(provenance(weights).get("spacing", default))
