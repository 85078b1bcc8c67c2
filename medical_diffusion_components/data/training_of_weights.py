"""Whether weights were trained on the volumes at hand: a copy audit against any others would say nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from medical_diffusion_components.weights import EMBEDDED, HASHES_AT_HOME, provenance

__all__ = ["trained_on", "without_hashes"]


def trained_on(weights: str | os.PathLike, data: Mapping[str, Any]) -> bool | None:
    """Whether the training volumes of ``data`` are those that the weights were trained on; None where nobody knows.

    Held-out volumes may have been added since. An embedded cohort is drawn again on every machine, where its last digits
    may differ: there its name and the number of its subjects count.

    Args:
        weights: their path; the note beside them is read.
        data: of the volumes at hand, as ``describe_data`` gives it.

    Returns:
        None for weights without a note, or with one that says nothing of data.
    """
    note = provenance(weights)
    if "data_sha256" not in note:
        return None
    same = any(name in note and note[name] == data.get(name) for name in ("training_sha256", "data_sha256"))
    drawn_again = data["data"].startswith(EMBEDDED) and all(note.get(name) == data[name] for name in ("data", "cases"))
    return same or drawn_again


def without_hashes(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The same for a report that travels: entry ``data`` without the hashes that say exactly which volumes these were.

    Args:
        facts: with ``data``, as ``describe_data`` gives it, or without.
    """
    if not isinstance(facts.get("data"), Mapping):
        return dict(facts)
    return {**facts, "data": {name: one for name, one in facts["data"].items() if name not in HASHES_AT_HOME}}
