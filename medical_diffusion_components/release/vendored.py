"""The package as it travels inside a bundle: under a name of the bundle's own, importing no more than what is asked for."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

__all__ = ["NAME", "renamed", "vendored_files", "vendored_name"]

NAME = __name__.partition(".")[0]
_LEFT_OUT = {"__pycache__"}
_LAZY = '''"""{docstring}"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

_PLACES = {places}
__all__ = {names}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: a bundle needs little of the package, and of what that needs."""
    if name not in _PLACES:
        raise AttributeError(f"module {{__name__!r}} has no attribute {{name!r}}")
    module = _PLACES[name]
    return import_module(f"{{__name__}}.{{name}}") if module == __name__ else getattr(import_module(module), name)


class _Room(ModuleType):
    """A room in which a module does not hide what is exported under its name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _PLACES or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Room
'''


def vendored_name(bundle: str) -> str:
    """Name of the package inside a bundle; no other bundle's and no installed package's."""
    return f"{bundle}_components"


def renamed(text: str, bundle: str) -> str:
    """``text``, of a module or a configuration, with the package's name inside the bundle."""
    return text.replace(NAME, vendored_name(bundle))


def vendored_files(bundle: str) -> Iterator[tuple[str, bytes]]:
    """Path below the bundle's folder and content of every file of the package, in order.

    The ``__init__`` of each room names what it exports as here, and imports it on demand: a bare environment lacks what
    only training, drawing or preparation need.
    """
    package = Path(__file__).parents[1]
    for path in sorted(path for path in package.rglob("*") if path.is_file() and not _LEFT_OUT & set(path.parts)):
        place = path.relative_to(package)
        content = path.read_bytes()
        if path.suffix == ".py":
            text = path.read_text()
            if path.name == "__init__.py":
                text = _lazy(text)
            content = renamed(text, bundle).encode()
        yield f"{vendored_name(bundle)}/{place.as_posix()}", content


def _lazy(text: str) -> str:
    """The text of an ``__init__`` that imports on demand; one that does more than export stays as it is."""
    tree = ast.parse(text)
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module]
    others = [node for node in tree.body if node not in imports and not _is_inert(node)]
    if others or not imports:
        return text
    places = {alias.asname or alias.name: node.module for node in imports for alias in node.names}
    return _LAZY.format(docstring=ast.get_docstring(tree) or "", places=places, names=sorted(places))


def _is_inert(node: ast.stmt) -> bool:
    """A docstring, or the list of public names."""
    if isinstance(node, ast.Assign):
        return isinstance(node.targets[0], ast.Name) and node.targets[0].id == "__all__"
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
