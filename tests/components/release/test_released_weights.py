from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from medical_diffusion_components.files import file_hash
from medical_diffusion_components.release import released_weights
from medical_diffusion_components.release.released_weights import release_weights
from medical_diffusion_components.weights import WeightsError, load_weights, provenance, save_weights

KNOBS = {"image_size": [16, 32, 12], "base_channels": 4}
NOTE = {"data": "embedded template cohort", "notice": "not patients", "knobs": KNOBS}


def trained(folder: Path, **note: object) -> Path:
    torch.manual_seed(0)
    save_weights(nn.Linear(2, 3), folder / "models" / "model.pt", {**NOTE, **note})
    return folder / "models"


def test_a_released_folder_holds_the_weights_and_their_note(tmp_path: Path) -> None:
    models = trained(tmp_path)
    released = release_weights(models, tmp_path, KNOBS)
    assert released == tmp_path / "released" / "model.pt"
    assert sorted(path.name for path in released.parent.iterdir()) == ["model.json", "model.pt"]
    assert released.read_bytes() == (models / "model.pt").read_bytes()
    assert provenance(released) == provenance(models / "model.pt")


def test_a_note_without_knobs_gets_those_of_the_training(tmp_path: Path) -> None:
    models = trained(tmp_path, knobs=KNOBS)
    note = json.loads((models / "model.json").read_text())
    del note["knobs"]
    (models / "model.json").write_text(json.dumps(note))
    assert provenance(release_weights(models, tmp_path, KNOBS))["knobs"] == KNOBS


def test_a_knob_that_came_after_the_note_is_released_as_it_is_sampled(tmp_path: Path) -> None:
    """The note is of a version without ``denoiser_patch``; released, it has it."""
    now = {**KNOBS, "denoiser_patch": [1, 1, 1], "declared_conditions": None}
    released = release_weights(trained(tmp_path), tmp_path, now)
    assert provenance(released)["knobs"] == now
    load_weights(nn.Linear(2, 3), released, now)
    other = {**now, "denoiser_patch": [2, 2, 2]}
    with pytest.raises(WeightsError, match=r"trained with denoiser_patch \[1, 1, 1\], not \[2, 2, 2\]"):
        release_weights(tmp_path / "models", tmp_path, other)
    with pytest.raises(WeightsError, match=r"trained with denoiser_patch \[1, 1, 1\], not \[2, 2, 2\]"):
        load_weights(nn.Linear(2, 3), tmp_path / "models" / "model.pt", other)


def test_the_note_holds_what_inference_takes_by_default(tmp_path):
    released = release_weights(trained(tmp_path), tmp_path, KNOBS, defaults={"num_inference_steps": 20})
    assert provenance(released)["knobs"] == {**KNOBS, "num_inference_steps": 20}


@pytest.mark.parametrize(("note", "message"), [
    ({"data": "the user's data"}, "only weights of an embedded cohort"),
    ({"knobs": {**KNOBS, "base_channels": 8}}, "trained with base_channels 8, not 4"),
    ({"knobs": {**KNOBS, "num_codes": 9}}, "trained with num_codes 9, not None"),
    ({"source": "/data/patients/images"}, "holds a path.*: /data/patients/images"),
    ({"source": ["made in ~/images"]}, "holds a path"),
    ({"source": {"folder": "D:\\images"}}, "holds a path"),
])  # fmt: skip
def test_what_must_not_be_released_is_refused(tmp_path: Path, note: dict, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        release_weights(trained(tmp_path, **note), tmp_path, KNOBS)
    assert not (tmp_path / "released").exists()


def test_weights_of_another_note_are_refused(tmp_path: Path) -> None:
    models = trained(tmp_path)
    (models / "model.json").write_text(json.dumps({**provenance(models / "model.pt"), "sha256": "0" * 64}))
    with pytest.raises(WeightsError, match="of other weights"):
        release_weights(models, tmp_path, KNOBS)
    (models / "model.json").unlink()
    with pytest.raises(WeightsError, match="is missing"):
        release_weights(models, tmp_path, KNOBS)


def test_a_branch_is_released_beside_its_own_generator_and_no_other(tmp_path: Path) -> None:
    generator = release_weights(trained(tmp_path), tmp_path, KNOBS)
    branch = {**NOTE, "generator": file_hash(generator)}
    save_weights(nn.Linear(4, 5), tmp_path / "models" / "control.pt", branch)
    released = release_weights(tmp_path / "models", tmp_path, KNOBS, name="control.pt")
    assert sorted(path.name for path in released.parent.glob("*.pt")) == ["control.pt", "model.pt"]
    assert provenance(released)["generator"] == file_hash(generator)
    save_weights(nn.Linear(4, 5), tmp_path / "models" / "control.pt", {**branch, "generator": "0" * 64})
    with pytest.raises(WeightsError, match=r"control.pt belongs to another generator than .*model.pt"):
        release_weights(tmp_path / "models", tmp_path, KNOBS, name="control.pt")


def test_weights_too_large_for_a_repository_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(released_weights, "LARGEST", 1e-4)
    with pytest.raises(WeightsError, match="has 0.0 MB, more than the 0.0001 MB"):
        release_weights(trained(tmp_path), tmp_path, KNOBS)
    assert not (tmp_path / "released").exists()


def test_half_the_bits_make_half_the_file_and_the_note_says_so(tmp_path: Path) -> None:
    network = nn.ModuleDict({"a": nn.Linear(200, 300), "b": nn.BatchNorm1d(7)})
    before = save_weights(network, tmp_path / "models" / "model.pt", NOTE)
    released = release_weights(before.parent, tmp_path, KNOBS, half=True)
    assert released.stat().st_size < 0.6 * before.stat().st_size
    note = provenance(released)
    assert (note["sha256"], note["rounded_from"]) == (file_hash(released), file_hash(before))
    assert note["stored_as"] == "float16"
    loaded = nn.ModuleDict({"a": nn.Linear(200, 300), "b": nn.BatchNorm1d(7)})
    load_weights(loaded, released)
    assert loaded["b"].num_batches_tracked.dtype is torch.int64
    assert torch.equal(loaded["a"].bias, network["a"].bias)  # a vector, as a noise schedule is one
    assert not torch.equal(loaded["a"].weight, network["a"].weight)
    for one, other in zip(network.parameters(), loaded.parameters()):
        assert other.dtype is torch.float32
        torch.testing.assert_close(one, other, rtol=2**-11, atol=1e-7)
