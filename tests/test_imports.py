"""Imports point one way, the parts that need nothing else need nothing else, and the wheel holds the package alone."""

from __future__ import annotations

import ast
import io
import shutil
import subprocess
import sys
import tokenize
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAME = "medical_diffusion_components"
PACKAGE = ROOT / NAME

# A room imports from itself and from the rows above its own. ``PACKAGE/__init__.py`` holds the version and imports nothing.
ROWS = [
    {"__init__"},
    {"files", "engine_state", "orientation", "threads", "requirements"},
    {"distributed"},
    {"chance", "weights"},
    {"dicom", "networks", "transforms"},
    {"losses", "diffusion"},
    {"data", "metrics"},
    {"workflow"},
    {"preparation", "handlers", "reports", "pages"},
    {
        "engines",
        "cohorts",
        "evaluation",
        "audit",
        "control",
        "editing",
        "label_study",
        "preflight",
        "release",
        "dicom_export",
    },
    {"dataset_release", "new_bundle"},
]
RANK = {room: rank for rank, row in enumerate(ROWS) for room in row}
# What training and sampling can do without: reading raw downloads, writing DICOM, inventing data, judging
# volumes and showing them, editing scans, control by masks, auditing copies, studying how many labels it takes, making new
# bundles, releasing bundles and data sets.
PERIPHERY = {
    "dicom",
    "dicom_export",
    "preparation",
    "preflight",
    "cohorts",
    "pages",
    "evaluation",
    "audit",
    "control",
    "editing",
    "label_study",
    "new_bundle",
    "release",
    "dataset_release",
}
CORE_LINES = 8000
# of the extras in setup.cfg
EXTRAS = ["pydicom", "itk", "highdicom", "torchio", "numpyradiomics", "pylidc", "pyarrow", "pandas", "sklearn"]


def room_of(file: Path, package: Path = PACKAGE) -> str:
    """Folder or module of the package that a file belongs to."""
    return file.relative_to(package).parts[0].removesuffix(".py")


def imported_modules(code: str) -> Iterator[tuple[int, str]]:
    """Line and full name of whatever ``code`` imports, also inside functions."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError(f"line {node.lineno}: expected the full path of a module, got a relative import")
            yield from ((node.lineno, f"{node.module}.{name.name}") for name in node.names)


@cache
def imports_within() -> list[tuple[str, str, str]]:
    """(importing room, imported room, where) of all imports between rooms of the package."""
    found = []
    for file in sorted(PACKAGE.rglob("*.py")):
        for line, module in imported_modules(file.read_text()):
            parts = module.split(".")
            if parts[0] == NAME:
                room = parts[1] if parts[1] in RANK else "__init__" if parts[1] == "__version__" else parts[1]
                if room != room_of(file):
                    found.append((room_of(file), room, f"{file.relative_to(ROOT)}:{line} imports {module}"))
    return found


def test_every_room_has_a_row() -> None:
    rooms = {room_of(path) for path in PACKAGE.rglob("*.py")}
    assert rooms == set(RANK)
    assert len(imports_within()) > 200, "the walk has missed imports"


def test_imports_point_from_lower_rows_to_higher_ones() -> None:
    assert [where for room, other, where in imports_within() if RANK[other] >= RANK[room]] == []


def test_dicom_imports_nothing_of_ours() -> None:
    assert [where for room, _, where in imports_within() if room == "dicom"] == []


def test_the_core_imports_neither_dicom_nor_preparation_nor_cohorts() -> None:
    crossing = [where for room, other, where in imports_within() if other in PERIPHERY and room not in PERIPHERY]
    assert crossing == []


@pytest.mark.slow
def test_no_room_needs_an_optional_package() -> None:
    """What does need one is imported from its own file: a configuration may take the rest where no extra is installed."""
    rooms = sorted({path.parent.relative_to(ROOT) for path in PACKAGE.rglob("__init__.py")})
    code = f"""
import importlib, sys
sys.modules.update(dict.fromkeys({EXTRAS}))  # None: not to be found
for room in {[".".join(room.parts) for room in rooms]}:
    try:
        importlib.import_module(room)
    except ImportError as error:
        print(room, error)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.stdout, done.returncode) == ("", 0), done.stdout + done.stderr


def test_the_table_of_the_documentation_is_this_one() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ") and line[2].isdigit()]
    written = [{part.strip(" `") for part in row.split("|")[2].split(",")} for row in rows]
    assert written == ROWS[1:]


@pytest.mark.parametrize(("code", "module"), [
    (f"def f():\n    import {NAME}.cohorts.knee", f"{NAME}.cohorts.knee"),
    (f"if x:\n    from {NAME} import dicom", f"{NAME}.dicom"),
    (f"from {NAME}.engines import precision as p", f"{NAME}.engines.precision"),
])  # fmt: skip
def test_imports_are_found_wherever_they_stand(code: str, module: str) -> None:
    assert [name for _, name in imported_modules(code)] == [module]


def code_lines(text: str) -> int:
    """Lines that hold code: no blank ones, comments or docstrings."""
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            docstrings |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    silent = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines = {
        line
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type not in silent
        for line in range(token.start[0], token.end[0] + 1)
    }
    return len(lines - docstrings)


def test_lines_of_code_are_counted_without_what_explains_them() -> None:
    assert (
        code_lines('"""Doc\n\nmore."""\n\nx = """a\nb"""  # why\n# note\n\n\ndef f():\n    """Doc."""\n    return 1\n')
        == 4
    )


def test_the_core_is_small(capsys: pytest.CaptureFixture[str]) -> None:
    texts = [path.read_text() for path in PACKAGE.rglob("*.py") if room_of(path) not in PERIPHERY]
    code, lines = sum(code_lines(text) for text in texts), sum(text.count("\n") for text in texts)
    with capsys.disabled():
        print(
            f"\ncore: {code:,} lines of code, {lines:,} with docstrings, comments and blank lines, {len(texts)} files"
        )
    assert 2000 < code < CORE_LINES


HELPERS = [*(ROOT / "tests").rglob("*.py"), ROOT / "data_manifests" / "builders.py"]


def test_nothing_but_tests_imports_what_is_for_tests() -> None:
    modules = {path.stem for path in HELPERS if path.is_relative_to(ROOT / "tests")} | {"tests", "conftest"}
    assert {"dicom_writing", "phantom_downloads", "dicom_fuzzing"} <= modules
    files = [*PACKAGE.rglob("*.py"), *(ROOT / "benchmarks").glob("*.py"), *(ROOT / "data_manifests").glob("*.py")]
    found = [
        f"{file.relative_to(ROOT)}:{line} imports {module}"
        for file in files
        for line, module in imported_modules(file.read_text())
        if module.split(".")[0] in modules
    ]
    assert found == []


BUILD = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_for_tests(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for folder in (NAME, "tests", "benchmarks", "data_manifests"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    built = subprocess.run([sys.executable, "-c", BUILD, str(tmp_path)], cwd=source, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = [name for name in wheel.namelist() if ".dist-info/" not in name]
    expected = {str(path.relative_to(ROOT)) for path in PACKAGE.rglob("*.py")} | {f"{NAME}/py.typed"}
    assert set(names) >= expected
    assert {name.split("/")[0] for name in names} == {NAME}
    assert {Path(name).name for name in names}.isdisjoint({path.name for path in HELPERS} - {"__init__.py"})


def test_no_two_files_of_tests_have_one_name() -> None:
    """pytest imports them by their names alone."""
    names = [path.name for path in (ROOT / "tests").rglob("*.py") if path.name not in ("conftest.py", "__init__.py")]
    assert sorted(names) == sorted(set(names))
