"""Weights are held against the volumes at hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from medical_diffusion_components.data import describe_data, trained_on, without_hashes

USERS: dict[str, Any] = {"data": "the user's dataset_dir", "data_sha256": "all", "training_sha256": "training"}
USERS |= {"cases": {"training": 3, "validation": 1, "test": 1}}
DRAWN = USERS | {"data": "embedded template cohort"}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return tmp_path / "model.pt"


def noted(weights: Path, note: dict[str, Any]) -> Path:
    weights.with_suffix(".json").write_text(json.dumps(note))
    return weights


@pytest.mark.parametrize(
    ("note", "data", "expected"),
    [
        (USERS, USERS, True),
        (USERS, USERS | {"data_sha256": "with more held out", "cases": {"training": 3, "validation": 9}}, True),
        (USERS, USERS | {"data_sha256": "other", "training_sha256": "other"}, False),
        ({"data": "the user's dataset_dir", "data_sha256": "all"}, USERS, True),
        (USERS | {"training_sha256": "last digits", "data_sha256": "too"}, DRAWN, False),
        (DRAWN | {"training_sha256": "last digits", "data_sha256": "too"}, DRAWN, True),
        (
            DRAWN | {"training_sha256": "of other subjects", "data_sha256": "too", "cases": {"training": 9}},
            DRAWN,
            False,
        ),
        (DRAWN, USERS | {"data_sha256": "other", "training_sha256": "other"}, False),
        (USERS, DRAWN | {"data_sha256": "other", "training_sha256": "other"}, False),
        ({"spacing": [1, 1, 1]}, USERS, None),
    ],
    ids=[
        "the same",
        "more held out",
        "others",
        "an older note",
        "invented now, real then",
        "invented on another machine",
        "another number of invented ones",
        "released weights, own data",
        "own weights, embedded cohort",
        "a note without data",
    ],
)
def test_training_volumes_are_recognised(weights: Path, note: dict, data: dict, expected: bool | None) -> None:
    assert trained_on(noted(weights, note), data) is expected


def test_reports_say_what_the_data_are_without_hashes_over_them() -> None:
    kept = {name: value for name, value in USERS.items() if not name.endswith("_sha256")}
    assert without_hashes({"steps": 2, "weights_sha256": "w", "data": USERS}) == {
        "steps": 2,
        "weights_sha256": "w",
        "data": kept,
    }
    assert without_hashes({"steps": 2}) == {"steps": 2}


def test_weights_without_a_note_say_nothing(weights: Path) -> None:
    assert trained_on(weights, USERS) is None


def test_adding_held_out_volumes_changes_the_folder_and_not_its_training_volumes(tmp_path: Path) -> None:
    content = {split: [{"image": f"{split}.nii", "patient_id": split}] for split in ("training", "validation", "test")}
    for split in (*content, "more"):
        (tmp_path / f"{split}.nii").write_bytes(split.encode())
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    before = describe_data(str(tmp_path), str(tmp_path))
    content["test"].append({"image": "more.nii", "patient_id": "more"})
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    after = describe_data(str(tmp_path), str(tmp_path))
    assert after["data_sha256"] != before["data_sha256"] and after["training_sha256"] == before["training_sha256"]
    (tmp_path / "training.nii").write_bytes(b"another")
    assert describe_data(str(tmp_path), str(tmp_path))["training_sha256"] != before["training_sha256"]
