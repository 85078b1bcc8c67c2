"""Trained weights into a bundle's folder ``released``, from where they serve whoever has none of their own."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from medical_diffusion_components.files import file_hash
from medical_diffusion_components.weights import (
    EMBEDDED,
    RELEASED,
    WeightsError,
    noted_knobs,
    provenance,
    read_state,
    save_tensors,
    write_weights,
)

__all__ = ["release_weights"]

LARGEST = 10  # MB: they are in every clone
_PATH = re.compile(r"(^|[\s'\"(])(~|[A-Za-z]:)?[/\\]\S")


def release_weights(
    models_dir: str | os.PathLike,
    bundle_root: str | os.PathLike,
    knobs: Mapping[str, Any],
    half: bool = False,
    defaults: Mapping[str, Any] | None = None,
    name: str = "model.pt",
) -> Path:
    """Copy weights and their note into the bundle's folder ``released``.

    The note is completed with the knobs of the training, where it comes from a version that did not write them. Nothing
    else is needed: ``model.pt`` of a generator holds its first stage.

    Args:
        models_dir: where training has put the weights.
        bundle_root: folder of the bundle.
        knobs: those of the training, under which inference and evaluation build the networks.
        half: write numbers of 32 bits as 16 (float16), of networks that would be too large otherwise; the note says so.
            Vectors are left as they are: they are small, and a noise schedule does not survive the rounding.
        defaults: further knobs that inference takes from the note, such as the sampler by which the weights were judged.
        name: file of the weights in either folder.

    Returns:
        path of the released weights.

    Raises:
        WeightsError: the weights are missing or damaged, have no note or that of others, were trained with other knobs or
            on anything but an embedded cohort, belong to a generator that is not the released one, are too large for a
            repository, or their note holds a path.
    """
    weights, target = Path(models_dir) / name, Path(bundle_root) / RELEASED / name
    state, note = read_state(weights), provenance(weights)
    knobs = json.loads(json.dumps(dict(knobs)))
    _check(weights, note, knobs)
    generator = target.with_name("model.pt")
    if "generator" in note and not (generator.is_file() and file_hash(generator) == note["generator"]):
        raise WeightsError(f"{weights} belongs to another generator than {generator}: release that one first")
    note["knobs"] = {**knobs, **(defaults or {})}
    if half:
        rounded = {name for name, tensor in state.items() if tensor.dtype is torch.float32 and tensor.dim() > 1}
        state = {name: tensor.half() if name in rounded else tensor for name, tensor in state.items()}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / name
        save_tensors(state, file) if half else shutil.copyfile(weights, file)
        if half:
            note |= {"sha256": file_hash(file), "rounded_from": note["sha256"], "stored_as": "float16"}
        size = file.stat().st_size / 1e6
        if size > LARGEST:
            raise WeightsError(
                f"{weights} has {size:.1f} MB, more than the {LARGEST} MB that a repository should carry"
            )
        write_weights(target, partial(shutil.copyfile, file), {".json": note})
    print(f"released {weights} as {target} ({size:.1f} MB)", flush=True)
    return target


def _check(weights: Path, note: Mapping[str, Any], knobs: Mapping[str, Any]) -> None:
    if note.get("sha256") != file_hash(weights):
        raise WeightsError(
            f"the note beside {weights} is missing, or of other weights: train again, or copy both files"
        )
    if not str(note.get("data", "")).startswith(EMBEDDED):
        raise WeightsError(
            f"{weights} was trained on {note.get('data', 'unknown data')}: only weights of an embedded cohort may lie in "
            "the repository, since others can give away whom they were trained on"
        )
    given = noted_knobs({"knobs": knobs})
    trained = noted_knobs(note) or given
    ids = [id for id in {**trained, **given} if trained.get(id) != given.get(id)]
    if ids:
        other = ", ".join(f"{id} {trained.get(id)}, not {given.get(id)}" for id in ids)
        raise WeightsError(f"{weights} was trained with {other}: give the overlays and settings of its training")
    paths = [text for text in _texts(note) if _PATH.search(text)]
    if paths:
        raise WeightsError(f"the note beside {weights} holds a path, which is nobody's business: {paths[0]}")


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part)
