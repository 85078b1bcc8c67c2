from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from medical_diffusion_components.files import file_hash, versions
from medical_diffusion_components.weights import (
    WeightsError,
    load_weights,
    own_or_released,
    provenance,
    save_weights,
    trained_knob,
    trained_spacing,
    with_weights,
)


class Fails(Exception):
    pass


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


def test_hashes_of_anybodys_data_lie_in_a_note_that_stays_at_home(tmp_path: Path) -> None:
    hashes = dict.fromkeys(("data_sha256", "training_sha256", "held_out_sha256", "conditions_sha256"), "f" * 64)
    path = save_weights(
        nn.Linear(1, 1), tmp_path / "model.pt", {"data": "the user's dataset_dir", **hashes, "epoch": 3}
    )
    travels, at_home = (json.loads((tmp_path / f"model{name}.json").read_text()) for name in ("", ".at_home"))
    assert "f" * 64 not in json.dumps(travels) and travels["epoch"] == 3
    assert at_home == {"sha256": file_hash(path), **hashes}
    assert provenance(path) == {**travels, **hashes}, "whoever has both reads them as one"
    (tmp_path / "model.json").write_text(json.dumps({**travels, "sha256": "0" * 64}))
    assert "data_sha256" not in provenance(path), "that of other weights counts for nothing"
    save_weights(nn.Linear(1, 1), tmp_path / "cohort.pt", {"data": "embedded template cohort", **hashes})
    assert not (tmp_path / "cohort.at_home.json").exists(), "nobody's data have nothing to hide"


def test_weights_without_a_note_have_no_known_origin(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert provenance(tmp_path / "model.pt") == {}
    path = save_weights(nn.Linear(1, 1), tmp_path / "model.pt", {})
    load_weights(nn.Linear(1, 1), path, {"depths": [1]})
    assert not caplog.records
    path.with_suffix(".json").unlink()
    load_weights(nn.Linear(1, 1), path, {"depths": [1]})
    assert "model.pt came without its note: spacing, axes and classes are taken from the configuration" in caplog.text
    with pytest.raises(
        WeightsError,
        match=r"than the configured one; .*model\.json, which says how its network was built, is missing",
    ):
        load_weights(nn.Linear(1, 2), path, {"depths": [1]})


class Killed(BaseException):
    pass


MOMENTS = [("torch.save", 1), *(("os.replace", n) for n in range(1, 7)), ("os.fsync", 1), ("os.fsync", 2)]


@pytest.mark.parametrize("moment", MOMENTS, ids=str)
@pytest.mark.parametrize("before", [True, False], ids=["after", "before"])
@pytest.mark.parametrize("former", [True, False], ids=["old pair", "nothing there"])
def test_a_process_killed_while_it_writes_weights_leaves_the_old_pair_or_the_new_one(
    moment: tuple[str, int], before: bool, former: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = {"data": "the user's dataset_dir", "spacing": [1, 1, 1], "training_sha256": "a"}
    path, module = tmp_path / "model.pt", nn.Linear(2, 1)
    if former:
        save_weights(nn.Linear(2, 1), path, facts)
    place, number = moment
    owner, name = {"torch": torch, "os": os}[place.partition(".")[0]], place.partition(".")[2]
    original, calls = getattr(owner, name), []

    def dying(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if before and len(calls) == number:
            raise Killed
        result = original(*args, **kwargs)
        if len(calls) == number:
            raise Killed
        return result

    with monkeypatch.context() as patched:
        patched.setattr(owner, name, dying)
        with suppress(Killed):
            save_weights(module, path, facts | {"spacing": [2, 2, 2], "training_sha256": "b"})
    if former or path.is_file():
        read = nn.Linear(2, 1)
        digest = load_weights(read, path, {"depths": [1]})
        new = torch.equal(read.weight, module.weight)
        assert provenance(path)["sha256"] == digest == file_hash(path)
        assert trained_spacing(path, [3, 3, 3]) == ([2, 2, 2] if new else [1, 1, 1])
        assert provenance(path)["training_sha256"] == ("b" if new else "a"), "the note that stays at home, too"
    save_weights(module, path, facts)
    assert {file.name for file in tmp_path.iterdir() if ".medical" not in file.name} == {
        "model.pt", "model.json", "model.at_home.json",
    }  # fmt: skip


def test_weights_keep_their_note_when_the_next_writing_is_killed_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts, path, original = {"data": "the user's dataset_dir"}, tmp_path / "model.pt", os.replace
    save_weights(nn.Linear(2, 1), path, facts | {"spacing": [1, 1, 1]})

    def dying(in_place: bool, source: str | os.PathLike, target: str | os.PathLike) -> None:
        if Path(target) != path or in_place:
            original(source, target)
        if Path(target) == path:
            raise Killed

    for in_place, spacing in ((True, [2, 2, 2]), (False, [3, 3, 3])):
        with monkeypatch.context() as patched, pytest.raises(Killed):
            patched.setattr(os, "replace", partial(dying, in_place))
            save_weights(nn.Linear(2, 1), path, facts | {"spacing": spacing})
    assert load_weights(nn.Linear(2, 1), path) == provenance(path)["sha256"]
    assert trained_spacing(path, [0, 0, 0]) == [2, 2, 2]


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


def test_tensors_of_the_same_names_and_other_shapes_are_named(tmp_path: Path) -> None:
    path = save_weights(nn.Linear(2, 3), tmp_path / "model.pt", {})
    network = nn.Linear(2, 4)
    before = network.weight.detach().clone()
    with pytest.raises(WeightsError, match=r"model\.pt is from another .*weight: expected \(4, 2\), got \(3, 2\)"):
        load_weights(network, path)
    assert torch.equal(network.weight, before)


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


def bundle_with(folder: Path, *files: str) -> Path:
    for file in files:
        save_weights(nn.Linear(1, 2), folder / file, {"data": "embedded template cohort", "notice": "No patient."})
    return folder


@pytest.mark.parametrize(("files", "expected"), [
    (["models/model.pt", "released/model.pt"], "models/model.pt"),
    (["released/model.pt"], "released/model.pt"),
    (["models/model_autoencoder.pt", "released/model.pt"], "released/model.pt"),
    ([], "models/model.pt"),
])  # fmt: skip
def test_own_weights_come_before_released_ones(tmp_path: Path, files: list[str], expected: str) -> None:
    bundle = bundle_with(tmp_path, *files)
    assert own_or_released(f"{bundle}/models", str(bundle)) == f"{bundle}/{expected}"
    assert own_or_released(f"{bundle}/./models/", str(bundle)).endswith(expected)


def test_released_weights_never_take_the_place_of_what_is_missing_elsewhere(tmp_path: Path) -> None:
    bundle = bundle_with(tmp_path, "released/model.pt")
    assert own_or_released(f"{bundle}/mine", str(bundle)) == f"{bundle}/mine/model.pt"


def test_released_weights_are_announced_once_and_own_ones_are_not(
    tmp_path: Path, capsys: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    bundle = bundle_with(tmp_path, "released/model.pt", "models/model.pt")
    load_weights(nn.Linear(1, 2), bundle / "models" / "model.pt")
    assert capsys.readouterr().out == ""
    load_weights(nn.Linear(1, 2), bundle / "released" / "model.pt")
    printed = capsys.readouterr().out
    assert "came with the bundle" in printed and "embedded template cohort. No patient." in printed
    assert not caplog.records, "the console of a run shows what is logged, too"


def test_knobs_come_from_the_note(tmp_path: Path) -> None:
    path = save_weights(nn.Linear(1, 1), tmp_path / "model.pt", {"knobs": {"depths": (1, 2), "window": None}})
    assert trained_knob(path, "depths", [3]) == [1, 2] and trained_knob(path, "window", 7) is None
    assert trained_knob(path, "heads", [3]) == trained_knob(tmp_path / "other.pt", "heads", [3]) == [3]


def test_knobs_that_contradict_the_note_are_refused_by_name(tmp_path: Path) -> None:
    path = save_weights(nn.Linear(1, 1), tmp_path / "model.pt", {"knobs": {"depths": [1, 2], "heads": 3, "width": 5}})
    load_weights(nn.Linear(1, 1), path, {"depths": (1, 2), "heads": 3, "of a later version": 1})
    with pytest.raises(
        WeightsError, match=r"was trained with depths \[1, 2\], not \[1, 1\], heads 3, not 4: leave"
    ) as found:
        load_weights(nn.Linear(1, 1), path, {"depths": [1, 1], "heads": 4, "width": 5})
    assert "width" not in str(found.value)


def test_a_knob_that_came_after_the_note_had_its_neutral_value(tmp_path: Path) -> None:
    path = save_weights(nn.Linear(1, 1), tmp_path / "model.pt", {"knobs": {"heads": 3}})
    assert trained_knob(path, "denoiser_patch", [2, 2, 2]) == [1, 1, 1]
    assert trained_knob(path, "declared_conditions", {"age": {}}) is None
    load_weights(nn.Linear(1, 1), path, {"heads": 3, "denoiser_patch": (1, 1, 1), "declared_conditions": None})
    with pytest.raises(WeightsError, match=r"was trained with denoiser_patch \[1, 1, 1\], not \[2, 2, 2\]: leave"):
        load_weights(nn.Linear(1, 1), path, {"heads": 3, "denoiser_patch": [2, 2, 2]})
    with_it = save_weights(nn.Linear(1, 1), tmp_path / "own.pt", {"knobs": {"denoiser_patch": [2, 2, 2]}})
    assert trained_knob(with_it, "denoiser_patch", [1, 1, 1]) == [2, 2, 2]
    without = save_weights(nn.Linear(1, 1), tmp_path / "none.pt", {})
    assert trained_knob(without, "denoiser_patch", [2, 2, 2]) == [2, 2, 2], "no note: nobody knows"
    load_weights(nn.Linear(1, 1), without, {"denoiser_patch": [2, 2, 2]})


def test_a_part_of_a_network_loads_what_is_its_own(tmp_path: Path) -> None:
    whole = nn.ModuleDict({"first_stage": nn.Linear(2, 3), "first_stage_of_another": nn.Linear(1, 1)})
    path = save_weights(whole, tmp_path / "model.pt", {"knobs": {"width": 3}})
    part = nn.Linear(2, 3)
    assert load_weights(part, path, part="first_stage") == file_hash(path)
    assert torch.equal(part.weight, whole["first_stage"].weight) and torch.equal(part.bias, whole["first_stage"].bias)
    with pytest.raises(WeightsError, match=r"2 missing \(such as weight; bias\)"):
        load_weights(part, path, part="denoiser")
    with pytest.raises(WeightsError, match="was trained with width 3, not 4"):
        load_weights(part, path, {"width": 4}, part="first_stage")


def test_a_note_of_other_weights_is_refused_and_none_is_not(tmp_path):
    """A model.pt that took the place of another would be described by what the first was trained on."""
    first, second = (
        save_weights(torch.nn.Linear(2, 1), tmp_path / f"{name}.pt", {"spacing": [1, 1, 1]}) for name in "ab"
    )
    shutil.copy(first, second)
    with pytest.raises(WeightsError, match=r"b\.pt: the note beside it is of other weights"):
        load_weights(torch.nn.Linear(2, 1), second)
    second.with_suffix(".json").unlink()
    load_weights(torch.nn.Linear(2, 1), second)


@pytest.mark.parametrize("content", ["{", "[1]", '{"knobs": [1]}'])
def test_a_damaged_note_is_named(content, tmp_path):
    path = save_weights(torch.nn.Linear(2, 1), tmp_path / "model.pt", {})
    path.with_suffix(".json").write_text(content)
    with pytest.raises(WeightsError, match=r"model\.json: expected the note that was written with the weights"):
        trained_knob(path, "image_size", None)
