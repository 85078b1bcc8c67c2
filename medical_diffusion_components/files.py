"""Files that are written whole or not at all, their hashes, and the versions of what made them."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

__all__ = ["file_hash", "versions", "write_atomically", "write_json"]


def write_atomically(path: str | os.PathLike, write: Callable[[Path], object]) -> Path:
    """Let ``write`` fill a temporary file beside ``path``, then rename it: ``path`` is never half-written.

    Raises:
        OSError: the folder cannot be made or written, or the disk is full; a file that was at ``path`` is untouched.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=f"_{path.name}")
        os.close(handle)
    except OSError as error:
        raise type(error)(error.errno, f"cannot write {path}: {error.strerror}") from error
    temporary = Path(name)
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        # torch reports a full disk as a RuntimeError about positions
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        free = shutil.disk_usage(path.parent).free / 2**20
        raise OSError(f"cannot write {path} ({free:,.0f} MiB free on its disk): {cause}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def write_json(path: str | os.PathLike, content: Mapping[str, Any], indent: int | None = 2) -> Path:
    """Write ``content`` as valid JSON, whole or not at all.

    JSON knows no NaN and no infinity. Such a number becomes ``null``, and beside its key stands why:
    ``{"dice": nan}`` is written as ``{"dice": null, "dice_reason": "not a number"}``. A reason that ``content`` gives
    itself under that key stays.

    Raises:
        TypeError: a value that JSON has no form for.
        OSError: as for :func:`write_atomically`.
    """
    text = json.dumps(_finite(content)[0], indent=indent, allow_nan=False) + "\n"
    return write_atomically(path, lambda temporary: temporary.write_text(text))


def _finite(value: Any) -> tuple[Any, str]:
    """``value`` with null for every number that is not finite, and the reason, unless it stands inside."""
    if isinstance(value, Mapping):
        found: dict[Any, Any] = {}
        for key, part in value.items():
            found[key], reason = _finite(part)
            if reason and f"{key}_reason" not in value:
                found[f"{key}_reason"] = reason
        return found, ""
    if isinstance(value, list | tuple):
        parts = [_finite(part) for part in value]
        reasons = [f"{number}: {reason}" for number, (_, reason) in enumerate(parts) if reason]
        return [part for part, _ in parts], "; ".join(reasons)
    if isinstance(value, float) and not math.isfinite(value):
        return None, "not a number" if math.isnan(value) else "infinite" if value > 0 else "minus infinite"
    return value, ""


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def file_hash(path: str | os.PathLike) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def versions() -> dict[str, str]:
    """Versions of this package and of what its results depend on."""
    names = ("medical-diffusion-bundles", "monai", "torch", "numpy")
    return {name: version(name) for name in names}
