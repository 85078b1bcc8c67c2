"""Finding files, writing them whole or not at all, their hashes, and the versions of what made them."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Concatenate, NamedTuple, ParamSpec

try:
    from filelock import lock_descriptor
except ImportError:  # too old a one, beside a bundle that runs without this package
    lock_descriptor = None  # type: ignore[assignment]

__all__ = [
    "PACKAGE_NAME",
    "FilesBelow",
    "check_writable",
    "file_hash",
    "files_below",
    "folder_setting",
    "markdown_table",
    "printable",
    "unfinished_folder",
    "versions",
    "write_atomically",
    "write_folder_atomically",
    "write_json",
]

PACKAGE_NAME = "medical-diffusion-bundles"
# Prefix of what is unfinished. What a killed process left under such a name is deleted, so nobody else may use the prefix.
_PART = ".medical_diffusion_part_"

P = ParamSpec("P")


class FilesBelow(NamedTuple):
    """What :func:`files_below` found, each list sorted.

    ``files`` are regular files or links to them; ``hidden`` files and folders have a dot in front of their name;
    ``broken_links`` point nowhere; ``seen_folders`` are links to folders whose files are among the others already;
    ``unreadable`` folders cannot be listed, or files not be looked at.
    """

    files: list[Path]
    hidden: list[Path]
    broken_links: list[Path]
    seen_folders: list[Path]
    unreadable: list[Path]


def files_below(root: Path) -> FilesBelow:
    """Every file below a folder; links to folders are followed, each folder is entered once, hidden ones are not.

    Real folders come before links, so a folder that lies below ``root`` keeps its own name.
    """
    found = FilesBelow([], [], [], [], [])
    entered: set[tuple[int, int]] = set()
    tops = [Path(root)]
    while tops:
        tops = sorted(link for top in tops for link in _collect(top, found, entered))
    for paths in found:
        paths.sort()
    return found


def _collect(top: Path, found: FilesBelow, entered: set[tuple[int, int]]) -> list[Path]:
    """Add what lies in ``top`` and its real subfolders; the links to folders in them are returned."""
    links: list[Path] = []
    for place, subfolders, names in os.walk(top, onerror=lambda error: found.unreadable.append(Path(error.filename))):
        folder = Path(place)
        if (identity := _identity(folder)) in entered:
            found.seen_folders.append(folder)
            subfolders.clear()
            continue
        entered.add(identity)
        found.hidden.extend(folder / name for name in (*subfolders, *names) if name.startswith("."))
        visible = [folder / name for name in subfolders if not name.startswith(".")]
        links += [path for path in visible if path.is_symlink()]
        subfolders[:] = sorted(path.name for path in visible if not path.is_symlink())
        for path in (folder / name for name in names if not name.startswith(".")):
            try:
                if path.is_file():
                    found.files.append(path)
                elif path.is_symlink():
                    found.broken_links.append(path)
                else:  # a pipe or a socket: whoever reads it waits for ever
                    found.unreadable.append(path)
            except PermissionError:  # in a folder that may be listed and not entered
                found.unreadable.append(path)
    return links


def _identity(folder: Path) -> tuple[int, int]:
    stat = folder.stat()
    return stat.st_dev, stat.st_ino


def folder_setting(name: str, value: Any) -> Path:
    """The path that a setting holds.

    Raises:
        ValueError: the command line made something else of it, as it does of a folder named by a date.
    """
    if not isinstance(value, (str, os.PathLike)):
        raise ValueError(
            f"--{name} was read as {value!r}, which is no path: the command line takes names such as 20231101, 2023_11_01 "
            f"or [a] for values of other kinds. Write ./ before the name (--{name} ./20231101), or its whole path"
        )
    return Path(value).expanduser()


def printable(text: str) -> str:
    """The text with what no character set can show, such as bytes of a file's name, written as ``\\udce4``."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table in Markdown; a bar or a line break within a cell does not end it."""

    def line(cells: Sequence[str]) -> str:
        texts = (cell.replace("|", "\\|").replace("\n", " ") for cell in cells)
        return "|" + "".join(f" {text} |" if text else " |" for text in texts)

    return [line(header), "|" + "---|" * len(header), *map(line, rows)]


def check_writable(folder: str | os.PathLike) -> None:
    """Try a folder, or the one in which it would be made, before work is done whose results could not be kept.

    What a killed process has left unfinished in the folder is removed.

    Raises:
        OSError: it cannot be made, or nothing can be written into it.
    """
    place = Path(folder).absolute()
    while not place.exists():
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise type(error)(error.errno, f"cannot write to {os.fspath(folder)}: {error.strerror}") from error
    for left in Path(folder).glob(f"{_PART}*"):
        with _claimed(left) as mine:
            if mine:  # nobody is writing it
                shutil.rmtree(left)


def write_atomically(
    path: str | os.PathLike, write: Callable[Concatenate[Path, P], object], *args: P.args, **kwargs: P.kwargs
) -> Path:
    """Let ``write`` fill a temporary file, then move it to ``path``: ``path`` is never half-written.

    Args:
        path: where to; its folder is made.
        write: called as ``write(temporary, *args, **kwargs)``, such as ``Path.write_text`` or ``numpy.save``; the temporary
            file has the name of ``path``, in another folder.
        args: what to write.
        kwargs: how to.

    Raises:
        OSError: the folder cannot be made or written, or the disk is full; a file that was at ``path`` is untouched.
    """
    with _replacing(Path(path)) as temporary:
        write(temporary, *args, **kwargs)
    return Path(path)


def write_folder_atomically(path: str | os.PathLike, write: Callable[[Path], object]) -> Path:
    """Let ``write`` fill a temporary folder, then move it to ``path``: ``path`` never holds a part of its files.

    A folder that was at ``path`` gives way as a whole, once the new one is complete. Killed between its two renames, the
    process leaves no folder at ``path``.

    Raises:
        OSError: the folder cannot be made or written, or the disk is full; what was at ``path`` is untouched.
    """
    with _replacing(Path(path)) as temporary:
        temporary.mkdir()
        write(temporary)
    return Path(path)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Where to make the file or folder that takes the place of ``path`` at the end, unless there was an error."""
    with ExitStack() as stack:
        try:
            beside = stack.enter_context(unfinished_folder(path))
        except OSError as error:
            raise type(error)(error.errno, f"cannot write {path}: {error.strerror}") from error
        new = beside / path.name
        try:
            yield new
            for file in [new] if new.is_file() else files_below(new).files:
                with open(file, "rb") as content:
                    os.fsync(content.fileno())
            if new.is_dir() and path.exists():
                os.replace(path, beside / "old")
            os.replace(new, path)
        except OSError as error:
            free = shutil.disk_usage(path.parent).free / 2**20
            raise OSError(f"cannot write {path} ({free:,.0f} MiB free on its disk): {error}") from error


@contextmanager
def unfinished_folder(path: str | os.PathLike) -> Iterator[Path]:
    """An empty folder on the disk of ``path``, removed at the end.

    It is in a folder beside ``path`` whose name follows from that of ``path``, so that whoever makes ``path`` again takes
    over what a killed process left. Where another process is making ``path``, or the disk knows no locks, the name is a
    random one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    own = path.with_name(f"{_PART}{path.name}")
    with suppress(OSError):
        own.mkdir(exist_ok=True)
    with _claimed(own) as mine:
        place = own if mine else Path(tempfile.mkdtemp(dir=path.parent, prefix=".", suffix=f"_{path.name}"))
        folder = place / "content"
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            yield folder
        finally:
            shutil.rmtree(place, ignore_errors=True)


@contextmanager
def _claimed(folder: Path) -> Iterator[bool]:
    """Whether a folder is this process's own until the end, also of a killed one; not where the disk knows no locks."""
    lock, mine = folder / "lock", False
    with ExitStack() as stack:
        with suppress(OSError):
            handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
            stack.callback(os.close, handle)
            held = lock_descriptor is not None and lock_descriptor(handle, blocking=False)
            mine = held and os.path.samestat(os.fstat(handle), os.stat(lock))  # not removed meanwhile by who held it
        yield mine


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
    return write_atomically(path, Path.write_text, text)


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


def file_hash(path: str | os.PathLike) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def versions() -> dict[str, str]:
    """Versions of this package and of what its results depend on; a checkout that is not installed says so itself."""
    from medical_diffusion_components import __version__  # here: the package's own file imports nothing

    try:
        installed = version(PACKAGE_NAME) == __version__  # what is installed may be another copy than this one
    except PackageNotFoundError:
        installed = False
    own = __version__ if installed else f"{__version__} (not installed)"
    return {PACKAGE_NAME: own, **{name: version(name) for name in ("monai", "torch", "numpy")}}
