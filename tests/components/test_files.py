"""Files are whole or not there, and every JSON file is valid, whatever was measured."""

from __future__ import annotations

import json
import os
import resource
import signal
import stat
import subprocess
import sys
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pytest
import torch

from medical_diffusion_components import __version__, files
from medical_diffusion_components.files import (
    check_writable,
    files_below,
    folder_setting,
    markdown_table,
    versions,
    write_atomically,
    write_folder_atomically,
    write_json,
)
from medical_diffusion_components.weights import save_tensors

NAN, INF = float("nan"), float("inf")


def strictly(path: Path) -> dict:
    def refuse(constant: str) -> None:
        raise ValueError(constant)

    return json.loads(path.read_text(), parse_constant=refuse)


def test_what_is_no_number_is_null_with_the_reason_beside_it(tmp_path: Path) -> None:
    content = {"psnr": INF, "ssim": 0.5, "deep": {"dice": np.float64("nan")}, "curve": [1.0, NAN, (-INF,)]}
    found = strictly(write_json(tmp_path / "a.json", content))
    assert found == {
        "psnr": None,
        "psnr_reason": "infinite",
        "ssim": 0.5,
        "deep": {"dice": None, "dice_reason": "not a number"},
        "curve": [1.0, None, [None]],
        "curve_reason": "1: not a number; 2: 0: minus infinite",
    }
    assert list(found)[:2] == ["psnr", "psnr_reason"]


def test_a_reason_that_is_known_better_stays(tmp_path: Path) -> None:
    for content in ({"a": NAN, "a_reason": "no case has it"}, {"a_reason": "no case has it", "a": NAN}):
        found = strictly(write_json(tmp_path / "a.json", content))
        assert found == {"a": None, "a_reason": "no case has it"}


def test_plain_values_come_back_as_they_were(tmp_path: Path) -> None:
    content = {"text": "NaN", "none": None, "flag": True, "list": [1, 2.5, {"x": "ä"}], "empty": {}}
    assert strictly(write_json(tmp_path / "deep" / "a.json", content)) == content
    assert (tmp_path / "deep" / "a.json").read_text().endswith("}\n")


def test_what_json_has_no_form_for_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert strictly(path) == {"a": 1} and [item.name for item in tmp_path.iterdir()] == ["a.json"]


def test_no_cell_ends_its_row_of_a_table() -> None:
    assert markdown_table(("case", "why", ""), [("a|b", "one\ntwo", "c"), ("", "d", "")]) == [
        "| case | why | |",
        "|---|---|---|",
        "| a\\|b | one two | c |",
        "| | d | |",
    ]


def test_no_module_writes_json_in_a_way_of_its_own() -> None:
    package = Path(__file__).parents[2] / "medical_diffusion_components"
    for file in sorted(package.rglob("*.py")):
        if file.name != "files.py":
            text = file.read_text()
            assert "json.dump(" not in text and "write_text(json.dumps(" not in text, file


def half(path: Path) -> None:
    path.write_bytes(b"half")
    raise OSError(28, "No space left on device")


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "model.pt"
    for content in (b"old", b"new"):
        assert write_atomically(path, Path.write_bytes, content) == path
        assert path.read_bytes() == content and list(path.parent.iterdir()) == [path]


def test_who_reads_while_it_is_replaced_reads_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(b"old")
    with open(path, "rb") as reader:
        write_atomically(path, lambda temporary: temporary.write_bytes(b"new"))
        assert reader.read() == b"old"


def test_what_is_written_has_the_name_that_its_suffix_tells(tmp_path: Path) -> None:
    names = []
    write_atomically(tmp_path / "volume.nii.gz", lambda temporary: (temporary.touch(), names.append(temporary.name)))
    assert names == ["volume.nii.gz"]


@pytest.mark.parametrize("error", [OSError(28, "No space left"), RuntimeError("unexpected pos"), KeyboardInterrupt()])
def test_after_a_failure_the_old_file_is_untouched_and_nothing_lies_about(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(b"old")

    def fail(temporary: Path) -> None:
        temporary.write_bytes(b"half")
        raise error

    with pytest.raises(type(error)):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_failure_names_the_file_the_space_left_and_the_cause(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"cannot write .*model\.pt \([\d,]+ MiB free on its disk\): .*No space left"):
        write_atomically(tmp_path / "model.pt", half)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file")
    with pytest.raises(OSError, match=r"cannot write .*models/deep/model\.pt: Not a directory"):
        write_atomically(tmp_path / "models" / "deep" / "model.pt", half)


def test_a_file_does_not_take_the_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "result" / "deep").mkdir(parents=True)
    with pytest.raises(OSError, match=r"cannot write .*result"):
        write_atomically(tmp_path / "result", Path.write_text, "a file")
    assert [path.name for path in tmp_path.iterdir()] == ["result"] and (tmp_path / "result" / "deep").is_dir()


def test_others_may_read_what_was_written(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        path = write_atomically(tmp_path / "model.pt", lambda temporary: temporary.write_bytes(b""))
    finally:
        os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_full_disk_is_reported_as_such_although_torch_does_not(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    path = tmp_path / "model.pt"
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match=r"cannot write .*model\.pt .*: \[Errno 27\] File too large"):
            write_atomically(path, lambda temporary: save_tensors(torch.zeros(100_000), temporary))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_versions_are_those_installed() -> None:
    assert versions()["torch"] == version("torch") and versions()["monai"] == version("monai")


KILLED = """
import os, signal, sys
from pathlib import Path
from medical_diffusion_components.files import write_atomically

def write(temporary):
    temporary.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)

write_atomically(Path(sys.argv[1]), write)
"""


@pytest.mark.slow
def test_a_process_killed_while_it_writes_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(b"old")
    assert subprocess.run([sys.executable, "-c", KILLED, str(path)]).returncode == -9
    assert path.read_bytes() == b"old"


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    def write(name: str, folder: Path) -> None:
        (folder / name).write_text(name)

    for name in ("old", "new"):
        write_folder_atomically(tmp_path / "series", partial(write, name))
    assert [path.name for path in (tmp_path / "series").iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [tmp_path / "series"]


def test_after_a_failure_the_old_folder_is_untouched_and_nothing_lies_about(tmp_path: Path) -> None:
    def fails(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise OSError(28, "No space left on device")

    write_folder_atomically(tmp_path / "series", lambda folder: (folder / "old").write_text("old"))
    with pytest.raises(OSError, match=r"cannot write .*series \([\d,]+ MiB free.*No space left"):
        write_folder_atomically(tmp_path / "series", fails)
    assert [path.name for path in (tmp_path / "series").iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [tmp_path / "series"]


def test_links_are_followed_and_loops_end(tmp_path):
    root, store = tmp_path / "root", tmp_path / "store"
    for place in (root / "b", store / "deep", root / ".hidden"):
        place.mkdir(parents=True)
        (place / "x").touch()
    (root / "a").symlink_to(store)
    (store / "loop").symlink_to(root)
    (root / "gone").symlink_to(root / "nowhere")
    found = files_below(root)
    names = [[path.relative_to(root).as_posix() for path in paths] for paths in found]
    assert names == [["a/deep/x", "b/x"], [".hidden"], ["gone"], ["a/loop"], []]


def test_a_link_into_the_folder_itself_does_not_rename_what_it_points_to(tmp_path):
    (tmp_path / "z").mkdir()
    (tmp_path / "z" / "x").touch()
    (tmp_path / "a").symlink_to(tmp_path / "z")
    found = files_below(tmp_path)
    assert found.files == [tmp_path / "z" / "x"] and found.seen_folders == [tmp_path / "a"]


def test_a_folder_setting_is_a_path_or_explained():
    assert folder_setting("raw_dir", "~/x") == Path.home() / "x"
    with pytest.raises(ValueError, match=r"--raw_dir was read as 20231101.*--raw_dir \./20231101"):
        folder_setting("raw_dir", 20231101)


def test_a_checkout_that_is_not_installed_has_a_version_and_says_so(monkeypatch):
    real = version

    def of(name):
        if name == "medical-diffusion-bundles":
            raise PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr("medical_diffusion_components.files.version", of)
    assert versions()["medical-diffusion-bundles"] == f"{__version__} (not installed)"
    assert versions()["torch"] == real("torch")


def test_a_folder_that_may_be_listed_and_not_entered_hides_none_of_the_others(tmp_path, monkeypatch):
    for name in ("open", "closed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text("")
    is_file = Path.is_file

    def denied(path):
        if path.parent.name == "closed":
            raise PermissionError(13, "Permission denied")
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", denied)
    found = files_below(tmp_path)
    assert found.files == [tmp_path / "open" / "a"] and found.unreadable == [tmp_path / "closed" / "a"]


@pytest.mark.parametrize("write", [write_atomically, write_folder_atomically])
def test_the_repeat_leaves_nothing_of_a_killed_process(tmp_path: Path, write) -> None:
    path = tmp_path / "result"

    def make(place: Path) -> None:
        (place / "a" if place.is_dir() else place).write_text("whole")

    def killed(place: Path) -> None:
        (place / "half" if place.is_dir() else place).write_text("much longer than the whole")
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        write(path, killed)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert [left.name for left in tmp_path.iterdir()] == [".medical_diffusion_part_result"]
    write(path, make)
    assert list(tmp_path.iterdir()) == [path]
    assert [file.read_text() for file in ([path] if path.is_file() else path.iterdir())] == ["whole"]


def test_trying_a_folder_clears_away_what_nobody_is_writing(tmp_path: Path) -> None:
    (tmp_path / ".medical_diffusion_part_gone.png").mkdir()
    (tmp_path / ".medical_diffusion_part_gone" / "new").mkdir(parents=True)
    (tmp_path / ".part_of_a_scan").write_text("the user's")
    write_atomically(tmp_path / "a.json", lambda place: (place.write_text("a"), check_writable(tmp_path)))
    write_folder_atomically(tmp_path / "b", lambda place: ((place / "c").touch(), check_writable(tmp_path)))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".part_of_a_scan", "a.json", "b"]
    assert (tmp_path / "a.json").read_text() == "a" and (tmp_path / "b" / "c").exists()


def test_what_takes_a_place_has_reached_the_disk_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_disk, sync = set(), os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (sync(handle), on_disk.add(os.fstat(handle).st_ino)))
    replace = os.replace

    def checked(source: Path, target: Path) -> None:
        files = [source] if source.is_file() else [file for file in source.rglob("*") if file.is_file()]
        assert {file.stat().st_ino for file in files} <= on_disk and files
        replace(source, target)

    monkeypatch.setattr(os, "replace", checked)
    write_atomically(tmp_path / "a.txt", Path.write_text, "a")
    write_folder_atomically(tmp_path / "b", lambda place: ((place / "c").mkdir(), (place / "c" / "d").write_text("d")))
    assert (tmp_path / "a.txt").is_file() and (tmp_path / "b" / "c" / "d").is_file()


def test_a_claim_whose_folder_was_cleared_away_meanwhile_counts_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = files.lock_descriptor

    def too_late(handle: int, **options: object) -> bool:
        """As if another process had finished and removed the folder between the opening of the lock and its locking."""
        for left in tmp_path.glob(".medical_diffusion_part_*/lock"):
            left.unlink()
            left.touch()
        return lock(handle, **options)

    monkeypatch.setattr(files, "lock_descriptor", too_late)
    with files.unfinished_folder(tmp_path / "a.txt") as folder:
        assert not folder.parent.name.startswith(".medical_diffusion_part_"), "which is now another one's"


@pytest.mark.parametrize("write", [write_atomically, write_folder_atomically])
def test_two_who_write_one_file_do_not_meet(tmp_path: Path, write) -> None:
    path = tmp_path / "result"

    def fill(text: str, place: Path) -> None:
        (place / text if place.is_dir() else place).write_text(text)

    def outer(place: Path) -> None:
        fill("outer", place)
        write(path, partial(fill, "inner"))
        names = [file.read_text() for file in (path.iterdir() if path.is_dir() else [path])]
        assert names == ["inner"] and (place.is_dir() or place.read_text() == "outer")

    write(path, outer)
    assert list(tmp_path.iterdir()) == [path]
    assert [file.read_text() for file in ([path] if path.is_file() else path.iterdir())] == ["outer"]
