"""Every module says what is public, and configurations and documentation name nothing else."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAME = "medical_diffusion_components"
PACKAGE = ROOT / NAME
# The package's own file holds the version; the face of ``dicom`` is ``dicom.series``, since pydicom is optional.
WITHOUT = {PACKAGE / "__init__.py", PACKAGE / "dicom" / "__init__.py"}
MODULES = sorted(path for path in set(PACKAGE.rglob("*.py")) - WITHOUT if path.name != "__main__.py")
# Where what a reader names comes from a longer path than the room's, since it needs an optional package.
WRITERS = {f"{NAME}.dicom_export.{file}" for file in ("synthetic_series", "edited_series", "segmentation_objects")}
LONGER = {f"{NAME}.preparation.steps", f"{NAME}.dicom.series", *WRITERS}


def names_in(targets: list[ast.expr]) -> set[str]:
    """Names that an assignment's targets bind."""
    return {node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)}


def defined(tree: ast.Module) -> set[str]:
    """Names that a module binds at its top level."""
    found: set[str] = set()
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {name.asname or name.name for name in node.names}
        elif isinstance(node, ast.Assign):
            found |= names_in(node.targets)
        elif isinstance(node, ast.AnnAssign):
            found |= names_in([node.target])
    return found


def listed(tree: ast.Module) -> list[str] | None:
    """A module's ``__all__``, or None."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and names_in(node.targets) == {"__all__"}:
            return [str(name) for name in ast.literal_eval(node.value)]
    return None


@cache
def public(module: str) -> frozenset[str] | None:
    """``__all__`` of a module or a room by its dotted name; None if there is no such module."""
    path = ROOT.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return frozenset(listed(ast.parse(file.read_text())) or ()) if file.is_file() else None


def named_in(text: str) -> set[tuple[str, str]]:
    """(module, name) of what a configuration or a documentation takes from the package."""
    found = set()
    for module, names in re.findall(rf"from ({NAME}[\w.]*) import \(?([\w, ]+)", text):
        found |= {(module, name.split(" as ")[0].strip()) for name in names.split(",") if name.strip()}
    for module, alias in re.findall(rf"import ({NAME}\.[\w.]+) as (\w+)", text):
        found |= {(module, name) for name in re.findall(rf"(?<![\w.]){alias}\.(\w+)\(", text)}
    for target in re.findall(rf"_target_\W+({NAME}[\w.]+)", text):
        found.add(tuple(target.rsplit(".", 1)))
    return found


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_module_lists_what_is_public_and_has_it(file: Path) -> None:
    tree = ast.parse(file.read_text())
    names = listed(tree)
    assert names, f"{file} has no __all__"
    assert set(names) <= defined(tree) | {path.stem for path in file.parent.iterdir()}
    assert len(set(names)) == len(names)


def test_what_is_named_is_found_however_it_is_named() -> None:
    text = f"""
    - "$from {NAME}.data import load_cases"
    - "$import {NAME}.workflow as workflow"
    x: "$workflow.start_run(@a)"
    "_target_": "{NAME}.networks.VQGAN"
    """
    found = {(f"{NAME}.data", "load_cases"), (f"{NAME}.workflow", "start_run"), (f"{NAME}.networks", "VQGAN")}
    assert named_in(text) == found


@pytest.mark.parametrize("kind", ["configs/*.yaml", "configs/*.json", "docs/*.md"])
def test_bundles_name_what_is_public_by_its_short_path(kind: str) -> None:
    found = {
        (*one, str(file.relative_to(ROOT)))
        for file in ROOT.glob(f"bundles/*/{kind}")
        for one in named_in(file.read_text())
    }
    assert kind.startswith("docs") or len(found) > 20, "the search has missed names"
    assert [one for one in sorted(found) if one[1] not in (public(one[0]) or ())] == []
    assert [one for one in sorted(found) if one[0].count(".") > 1 and one[0] not in LONGER] == []


def test_documentation_names_what_is_public() -> None:
    files = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("data_manifests/*.md")]
    found = {(*one, file.name) for file in files for one in named_in(file.read_text())}
    assert [one for one in sorted(found) if one[1] not in (public(one[0]) or ())] == []
