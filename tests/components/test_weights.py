from __future__ import annotations

import hashlib
import json
import os
import pickle
import resource
import stat
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from torch import nn

from medical_diffusion_components.files import file_hash, versions, write_atomically
from medical_diffusion_components.weights import (
    WeightsError,
    load_weights,
    provenance,
    save_tensors,
    save_weights,
    trained_spacing,
    with_weights,
)


class Fails(Exception):
    pass


def half(path: Path) -> None:
    path.write_bytes(b"half")
    raise OSError(28, "No space left on device")


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "model.pt"
    for content in (b"old", b"new"):
        assert write_atomically(path, lambda temporary, content=content: temporary.write_bytes(content)) == path
        assert path.read_bytes() == content and list(path.parent.iterdir()) == [path]


def test_who_reads_while_it_is_replaced_reads_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(b"old")
    with open(path, "rb") as reader:
        write_atomically(path, lambda temporary: temporary.write_bytes(b"new"))
        assert reader.read() == b"old"


def test_what_is_written_has_the_name_that_its_suffix_tells(tmp_path: Path) -> None:
    names = []
    write_atomically(tmp_path / "volume.nii.gz", lambda temporary: names.append(temporary.name))
    assert names[0].endswith("volume.nii.gz") and names[0].startswith(".")


@pytest.mark.parametrize("error", [OSError(28, "No space left"), RuntimeError("unexpected pos"), KeyboardInterrupt()])
def test_after_a_failure_the_old_file_is_untouched_and_nothing_lies_about(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(b"old")

    def fail(temporary: Path) -> None:
        temporary.write_bytes(b"half")
        raise error

    with pytest.raises((OSError, KeyboardInterrupt)):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_failure_names_the_file_the_space_left_and_the_cause(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"cannot write .*model\.pt \([\d,]+ MiB free on its disk\): .*No space left"):
        write_atomically(tmp_path / "model.pt", half)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file")
    with pytest.raises(OSError, match=r"cannot write .*models/deep/model\.pt: Not a directory"):
        write_atomically(tmp_path / "models" / "deep" / "model.pt", half)


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


def test_the_same_tensors_make_the_same_bytes(tmp_path: Path) -> None:
    network = nn.Linear(3, 4)
    one, other = (save_weights(network, tmp_path / name / "model.pt", {}) for name in ("a", "b"))
    assert one.read_bytes() == other.read_bytes()
    assert file_hash(one) == hashlib.sha256(one.read_bytes()).hexdigest()


def test_saved_weights_come_back_and_their_note_tells_their_origin(tmp_path: Path) -> None:
    network, other = nn.BatchNorm3d(3), nn.BatchNorm3d(3)
    network(torch.randn(2, 3, 4, 5, 6))
    path = save_weights(network, tmp_path / "model.pt", {"data": "abc"})
    assert load_weights(other, path) == provenance(path)["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in network.state_dict().items())
    assert provenance(path) == {"sha256": file_hash(path), "data": "abc", "versions": versions()}
    assert json.loads((tmp_path / "model.json").read_text())["data"] == "abc"


def test_weights_without_a_note_have_no_known_origin(tmp_path: Path) -> None:
    assert provenance(tmp_path / "model.pt") == {}


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"expected weights at .*model\.pt, but there is no such file"):
        load_weights(nn.Linear(1, 1), tmp_path / "model.pt")


def test_another_architecture_is_told_tensor_by_tensor(tmp_path: Path) -> None:
    path = save_weights(nn.ModuleDict({"a": nn.Linear(2, 3), "b": nn.Linear(2, 2)}), tmp_path / "model.pt", {})
    network = nn.ModuleDict({"a": nn.Linear(2, 4), "c": nn.Linear(2, 2)})
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(WeightsError, match=r"model\.pt is from another architecture") as error:
        load_weights(network, path)
    message = str(error.value)
    assert (
        r"2 of other shape (such as a.weight: expected (4, 2), got (3, 2); a.bias: expected (4,), got (3,))" in message
    )
    assert "2 missing (such as c.weight; c.bias)" in message and "2 unexpected (such as b.weight; b.bias)" in message
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("size", [0, 10, 500, -1])
def test_damaged_weights_are_named_in_one_line(tmp_path: Path, size: int) -> None:
    path = save_weights(nn.Linear(30, 40), tmp_path / "model.pt", {})
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(WeightsError, match=r"model\.pt cannot be read as weights, it is damaged") as error:
        load_weights(nn.Linear(30, 40), path)
    assert "\n" not in str(error.value)


def test_a_single_wrong_bit_is_noticed(tmp_path: Path) -> None:
    """Torch itself would load it."""
    network = nn.Linear(30, 40)
    path = save_weights(network, tmp_path / "model.pt", {})
    content = bytearray(path.read_bytes())
    content[content.index(network.weight.detach().numpy().tobytes()) + 100] ^= 1
    path.write_bytes(content)
    assert torch.load(path, weights_only=True)["weight"].shape == (40, 30)
    with pytest.raises(
        WeightsError, match=r"model\.pt cannot be read as weights, it is damaged .*record .* is damaged"
    ):
        load_weights(nn.Linear(30, 40), path)


class Bomb:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("zipped", [True, False])
def test_weights_that_would_run_code_are_refused(tmp_path: Path, monkeypatch, zipped: bool) -> None:
    monkeypatch.chdir(tmp_path)
    if zipped:
        torch.save({"weight": Bomb()}, "model.pt")
    else:
        Path("model.pt").write_bytes(pickle.dumps({"weight": Bomb()}))
    with pytest.raises(WeightsError, match="cannot be read as weights") as error:
        load_weights(nn.Linear(1, 1), "model.pt")
    assert not Path("exploded").exists()
    assert "weights_only" not in str(error.value), "no advice to run it"


@pytest.mark.parametrize("content", [{"iteration": 3, "objects": {}}, [1, 2], torch.zeros(3)])
def test_a_file_that_is_no_state_dict_is_told_apart(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(WeightsError, match=r"model\.pt holds no plain state dict"):
        load_weights(nn.Linear(1, 1), tmp_path / "model.pt")


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


def test_spacing_comes_from_the_note_of_the_weights(tmp_path: Path) -> None:
    path = str(save_weights(nn.Linear(1, 1), tmp_path / "model.pt", {"spacing": [0.5, 1.0, 3.0]}))
    assert trained_spacing(path, [1, 1, 1]) == [0.5, 1.0, 3.0]
    assert trained_spacing(str(tmp_path / "other.pt"), [1, 2, 3]) == [1, 2, 3]


def test_a_module_with_weights_is_the_module_itself(tmp_path: Path) -> None:
    saved, module = nn.Linear(2, 3), nn.Linear(2, 3)
    path = save_weights(saved, tmp_path / "model.pt", {})
    assert with_weights(module, path) is module
    assert torch.equal(module.weight, saved.weight)
    with pytest.raises(WeightsError, match="no such file"):
        with_weights(module, tmp_path / "other.pt")
