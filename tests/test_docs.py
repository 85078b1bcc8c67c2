"""The documentation builds without a warning: links, anchors and the names that API pages are made from all exist."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from mkdocs.commands.build import build
from mkdocs.config import load_config

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "medical_diffusion_components"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    build(load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(folder)))
    return folder


@pytest.mark.slow
def test_every_public_name_has_an_entry_and_no_role_is_left(site: Path) -> None:
    for page in sorted((ROOT / "docs" / "api").glob("*.md")):
        html = (site / "api" / f"{page.stem}.html").read_text()
        module = import_module(re.search(r"^::: ([\w.]+)$", page.read_text(), re.MULTILINE)[1])
        explained = [name for name in module.__all__ if callable(getattr(module, name))]  # constants are not shown
        missing = [name for name in explained if not re.search(rf'id="{module.__name__}\.([\w.]+\.)?{name}"', html)]
        assert not missing, f"{page.stem}: {missing}"
        assert not re.search(r":(class|func|meth|mod|attr):", html), page.stem


@pytest.mark.slow
def test_the_tutorial_is_a_page_with_its_pictures_and_without_a_broken_link(site: Path) -> None:
    cells = json.loads((ROOT / "docs" / "tutorial.ipynb").read_text())["cells"]
    html = (site / "tutorial.html").read_text()
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    pictures = [output for output in outputs if any(kind.startswith("image/") for kind in output.get("data", {}))]
    assert pictures and html.count('src="data:image/') == len(pictures)
    assert html.count("<h2") == "".join("".join(cell["source"]) + "\n" for cell in cells).count("\n## ") > 5
    assert 'href="own_data.html"' in html and 'href="tutorial.html"' in (site / "index.html").read_text()


def test_commands_write_switches_as_the_command_line_reads_them() -> None:
    """It reads ``True``; ``true`` is a text, and so is ``false``, which then counts as true."""
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("bundles/*/docs/*.md")]
    found = {page.name: re.findall(r"--[\w:#]+ (?:true|false)\b", page.read_text()) for page in pages}
    assert len(pages) > 20 and not any(found.values()), found


@pytest.mark.slow
def test_commands_of_hugging_face_exist() -> None:
    """``hf repo tag`` became ``hf repos tag``: the newest version within the bounds of setup.cfg is asked."""
    text = "".join(page.read_text() for page in (ROOT / "docs").glob("*.md"))
    commands = {tuple(words.split()) for words in re.findall(r"\bhf ((?:[a-z]+ ?)+)\b", text)}
    assert {("upload",), ("repos", "tag", "create"), ("auth", "login")} <= commands
    for command in commands:
        hf = Path(sys.executable).with_name("hf")
        done = subprocess.run([str(hf), *command, "--help"], capture_output=True, text=True)
        assert done.returncode == 0, f"hf {' '.join(command)}: {done.stderr}"


@pytest.mark.slow
def test_pages_fetch_nothing_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        fetched = re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"(https?://[^\"]+)", page.read_text())
        assert not [url for url in fetched if "canonical" not in url], page.name


def test_every_room_and_module_of_the_package_has_an_api_page_in_the_navigation() -> None:
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text().replace("!!python/", ""))["nav"]
    listed = next(part["API"] for part in navigation if "API" in part)
    assert {name for entry in listed for name in entry} == rooms - {"__init__", "new_bundle"}
