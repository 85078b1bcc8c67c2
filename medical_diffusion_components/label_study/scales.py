"""Sizes of the label study on its own test bed, for a processor overnight and for a GPU: see docs/label_study.md."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

__all__ = ["longer_finetuning", "pretraining_length", "study_scale"]

_CLASSES = {"background": 0, "breast": 1, "fibroglandular tissue": 2, "tumour": 3}
_PROTOCOL: dict[str, Any] = {  # the same at every scale
    "embedded_cohort": "varied_breast",
    "num_embedded_subjects": 120,
    "classes": _CLASSES,
    "flip_axes": [2],  # up and down; right breasts lie as left ones do
    "labelled": [2, 4, 8, "all"],
    "seeds": [0, 1, 2, 3, 4],
}
# id -> value, as label_study.yaml, train.yaml, evaluate.yaml or the pre-training's train.yaml has it
_SCALES: dict[str, dict[str, Any]] = {
    "small": {
        "image_size": [64, 32, 32],
        "roi_size": [64, 32, 32],
        "feature_size": 12,
        "depths": [1, 1, 1, 1],
        "num_heads": [1, 2, 4, 8],
        "window_size": 4,
        "batch_size": 2,
        "iterations_per_epoch": 50,
        "epochs": 12,
        "pretraining_batches": 300,
        "learning_rate": 3.0e-3,
        "warmup_iterations": 30,
        "overlap": 0.0,  # the window is the volume
        "val_interval": 4,
    },
    "large": {
        "image_size": [128, 128, 64],
        "roi_size": [64, 64, 64],
        "feature_size": 48,
        "depths": [2, 2, 2, 2],
        "num_heads": [3, 6, 12, 24],
        "window_size": 7,
        "batch_size": 2,
        "iterations_per_epoch": 50,
        "epochs": 200,
        "pretraining_batches": 10000,
        "learning_rate": 1.0e-4,
        "warmup_iterations": 100,
        "overlap": 0.5,
        "val_interval": 10,
    },
}
_OF_PRETRAINING = ("roi_size",)  # what the pre-training takes of a scale beside the network


def study_scale(name: str | None) -> dict[str, Any]:
    """Settings of the study on its own test bed, id -> value; empty if no scale is asked for.

    Raises:
        ValueError: an unknown scale.
    """
    if name is None:
        return {}
    if name not in _SCALES:
        raise ValueError(f"scale must be one of {', '.join(_SCALES)}, or null for your own settings; got {name!r}")
    return {**_PROTOCOL, **_SCALES[name]}


def longer_finetuning(epochs: int, iterations_per_epoch: int, batches: int | None, cost: float) -> dict[str, int]:
    """Settings of a fine-tuning that takes as much processor time as a pre-training and a fine-tuning together.

    Args:
        epochs: of the fine-tuning after a pre-training.
        iterations_per_epoch: batches of an epoch.
        batches: of the pre-training; None: it ends when it has converged, and nothing becomes longer.
        cost: processor time of such a batch, in batches of fine-tuning.
    """
    return {} if batches is None else {"epochs": epochs + round(batches * cost / iterations_per_epoch)}


def pretraining_length(
    batches: int | None, num_volumes: int, batch_size: int, sizes: Mapping[str, Any]
) -> dict[str, Any]:
    """Settings of a pre-training of so many batches, to the nearest epoch, that does not end before.

    Args:
        batches: None: nothing is set.
        num_volumes: of an epoch.
        batch_size: volumes of a batch.
        sizes: of the scale; what of it a pre-training takes is set, too.
    """
    own = {id: sizes[id] for id in _OF_PRETRAINING if id in sizes}
    if batches is None:
        return own
    epochs = max(1, round(batches / math.ceil(num_volumes / batch_size)))
    return {**own, "batch_size": batch_size, "epochs": epochs, "patience": None, "val_interval": max(1, epochs // 4)}
