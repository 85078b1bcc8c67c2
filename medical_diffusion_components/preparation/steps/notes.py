"""Remarks that transforms leave about a case, for the report of its preparation."""

from __future__ import annotations

from collections.abc import Hashable, MutableMapping
from typing import Any

__all__ = ["NOTES_KEY", "add_note"]

NOTES_KEY = "notes"


def add_note(data: MutableMapping[Hashable, Any], name: str, value: Any) -> None:
    """Put ``name: value`` among the notes of a case; ``value`` is plain (JSON)."""
    data[NOTES_KEY] = {**data.get(NOTES_KEY, {}), name: value}
