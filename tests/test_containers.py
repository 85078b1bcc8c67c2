"""Both container definitions install the same things, from files that exist, and are not root's."""

from __future__ import annotations

import re
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "containers" / "Dockerfile").read_text()
APPTAINER = (ROOT / "containers" / "apptainer.def").read_text()
INSTALL = re.compile(r'pip install .*"\.\[([\w,]+)\]"')


def copied_by_docker() -> set[str]:
    lines = re.findall(r"^COPY (.+)$", DOCKERFILE, re.MULTILINE)
    return {name for line in lines for name in line.split()[:-1]}


def copied_by_apptainer() -> set[str]:
    files = APPTAINER.partition("%files\n")[2].partition("\n\n")[0]
    return {line.split()[0] for line in files.splitlines()}


def test_both_copy_the_same_files_and_all_exist() -> None:
    assert copied_by_docker() == copied_by_apptainer() and len(copied_by_docker()) == 8
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in copied_by_docker():
        assert any(file == name or file.startswith(f"{name}/") for file in tracked), name


def test_both_run_the_same_installation_with_extras_that_exist() -> None:
    commands = [INSTALL.search(text) for text in (DOCKERFILE, APPTAINER)]
    assert commands[0][0] == commands[1][0]
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert set(commands[0][1].split(",")) <= set(setup["options.extras_require"])


def test_what_the_installation_needs_is_copied() -> None:
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    needed = {"setup.cfg", "pyproject.toml", setup["metadata"]["license_files"], "constraints.txt"}
    needed.add(setup["metadata"]["long_description"].removeprefix("file: "))
    assert needed <= copied_by_docker()


def test_no_image_takes_along_what_was_made_from_data() -> None:
    made = {f"bundles/*/{folder}" for folder in ("models", "output", "demo")}
    assert made <= set((ROOT / "containers" / "Dockerfile.dockerignore").read_text().split())
    assert made <= set(re.search(r"^ +rm -rf (.+)$", APPTAINER, re.MULTILINE)[1].split())


def test_docker_runs_as_a_user_and_looks_after_its_health() -> None:
    user = re.search(r"^USER (\w+)$", DOCKERFILE, re.MULTILINE)[1]
    assert user != "root" and f" {user}" in re.search(r"^RUN useradd (.+)$", DOCKERFILE, re.MULTILINE)[1]
    assert DOCKERFILE.index("USER") < DOCKERFILE.index("CMD [")


def test_the_linter_finds_nothing() -> None:
    """hadolint, with what the shell commands in it are checked for, too."""
    linter = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([linter, ROOT / "containers" / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("text", [DOCKERFILE, APPTAINER], ids=["Docker", "Apptainer"])
def test_the_health_check_is_true_here(text: str) -> None:
    code = re.search(r'"(import medical_diffusion_components, pathlib; .+?\))"', text)[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
