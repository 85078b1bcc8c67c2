"""Whether results can be written is known before any work is done: the first thing that a command tries."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from medical_diffusion_components.audit.copy_audit import CopyAudit
from medical_diffusion_components.control.pairs import PairWriter
from medical_diffusion_components.editing.scan_editing import ScanEditing
from medical_diffusion_components.files import check_writable
from medical_diffusion_components.reports.volume_writer import SyntheticVolumeWriter


def with_folder(kind: type, folder: str, **attributes: Any) -> Any:
    """An object that knows nothing but its folder: whatever it does before it tries the folder fails otherwise."""
    made = object.__new__(kind)
    vars(made).update(folder=folder, **attributes)
    return made


COMMANDS: dict[str, Callable[[str], object]] = {
    "sampling": lambda folder: with_folder(SyntheticVolumeWriter, folder).prepare(),
    "pairs": lambda folder: with_folder(PairWriter, folder).prepare(),
    "auditing": lambda folder: with_folder(CopyAudit, folder).prepare(),
    "editing": lambda folder: with_folder(ScanEditing, folder, writer=SimpleNamespace(folder=folder)).run("vary", {}),
}


@pytest.fixture(params=["a file", "below a file", "a folder of the system", "a new one in a folder of the system"])
def unwritable(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Places where root cannot write either."""
    (tmp_path / "occupied").touch()
    if "system" in request.param and not Path("/proc/self").is_dir():
        pytest.skip("a system without /proc")
    return {
        "a file": str(tmp_path / "occupied"),
        "below a file": str(tmp_path / "occupied" / "out"),
        "a folder of the system": "/proc/self",
        "a new one in a folder of the system": "/proc/self/out",
    }[request.param]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_that_cannot_be_written_is_named_before_anything_else(command: str, unwritable: str) -> None:
    with pytest.raises(OSError, match=f"cannot write to {unwritable}: "):
        COMMANDS[command](unwritable)


def test_trying_a_folder_leaves_nothing_behind(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b")
    check_writable(tmp_path)
    assert list(tmp_path.iterdir()) == []
