"""What a list of transforms does, as text that can be hashed: the same settings give the same text everywhere."""

from __future__ import annotations

import enum
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np
import torch

__all__ = ["describe", "settings_hash"]

# state that changes while a transform runs, or that has no part in what it computes
_TRANSIENT = {"R", "failure", "lazy", "_lazy", "_failure"}


def settings_hash(steps: Sequence[Any]) -> str:
    """SHA-256 of :func:`describe`."""
    return hashlib.sha256(json.dumps(describe(steps), sort_keys=True).encode()).hexdigest()


def describe(thing: Any) -> Any:
    """Plain values as they are, objects as their class and attributes, functions by name.

    Raises:
        TypeError: an object whose settings cannot be compared.
    """
    if thing is None or isinstance(thing, (bool, int, str)):
        return thing.value if isinstance(thing, enum.Enum) else thing
    if isinstance(thing, float):
        return repr(thing)
    if isinstance(thing, enum.Enum):
        return describe(thing.value)
    if isinstance(thing, np.generic):
        return describe(thing.item())
    if isinstance(thing, (np.ndarray, torch.Tensor)):
        array = np.ascontiguousarray(thing)
        return [str(array.dtype), list(array.shape), hashlib.sha256(array.tobytes()).hexdigest()]
    if isinstance(thing, (torch.dtype, torch.device, np.dtype)):
        return str(thing)
    if isinstance(thing, Mapping):
        return {str(key): describe(thing[key]) for key in sorted(thing, key=str)}
    if isinstance(thing, Set):
        return sorted(json.dumps(describe(item)) for item in thing)
    if isinstance(thing, (list, tuple)):
        return [describe(item) for item in thing]
    if isinstance(thing, functools.partial):
        return [describe(thing.func), describe(thing.args), describe(thing.keywords)]
    if isinstance(thing, type) or hasattr(thing, "__qualname__"):
        return _describe_function(thing)
    if hasattr(thing, "__dict__"):
        attributes = {key: value for key, value in vars(thing).items() if key not in _TRANSIENT}
        return {"class": _name(type(thing)), **describe(attributes)}
    raise TypeError(f"expected transforms with plain settings, got {type(thing).__name__}: {thing!r}")


def _describe_function(function: Any) -> Any:
    if code := getattr(function, "__code__", None):
        # a lambda's name says nothing; what it does and what it closes over does
        closure = [describe(cell.cell_contents) for cell in function.__closure__ or ()]
        body = hashlib.sha256(code.co_code + repr(code.co_consts).encode()).hexdigest()
        return [_name(function), closure, body if "<lambda>" in function.__qualname__ else ""]
    return _name(function)


def _name(thing: Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"
