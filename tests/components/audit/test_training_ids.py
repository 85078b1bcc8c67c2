"""Reports name training volumes so that those at home can find them, and nobody who holds a scan can."""

from __future__ import annotations

import csv
import hashlib
import hmac
import stat
from pathlib import Path

import pytest
import torch

from medical_diffusion_components.audit.training_ids import training_ids, volumes_by_id
from medical_diffusion_components.audit.volumes import AuditedVolumes


def volumes(*names: str) -> AuditedVolumes:
    cases = [{"image": f"{name}.nii.gz", "case_id": name, "patient_id": name} for name in names]
    hashes = [hashlib.sha256(name.encode()).hexdigest() for name in names]
    return AuditedVolumes(cases, hashes, torch.zeros(len(names), 1, 2, 2, 2))


def test_names_are_keyed_and_the_key_is_the_owners_alone(tmp_path: Path) -> None:
    training = volumes("one", "two")
    ids = training_ids(training, tmp_path)
    key = tmp_path / "at_home" / "key.txt"
    assert key.stat().st_mode & 0o077 == 0
    expected = hmac.digest(bytes.fromhex(key.read_text()), training.hashes[0].encode(), "sha256").hex()
    assert ids[0] == expected[:16] and len(set(ids)) == 2
    assert training_ids(training, tmp_path / "elsewhere") != ids, "another key: without it nobody can compute a name"


def test_names_stay_when_volumes_are_added_or_reordered(tmp_path: Path) -> None:
    one, two = training_ids(volumes("one", "two"), tmp_path)
    assert training_ids(volumes("two", "three", "one"), tmp_path)[::2] == [two, one]


def test_at_home_the_list_says_which_volume_is_which(tmp_path: Path) -> None:
    assert volumes_by_id(tmp_path) == {}
    training = volumes("one", "two, or so")
    ids = training_ids(training, tmp_path)
    assert volumes_by_id(tmp_path) == dict(zip(ids, training.hashes))
    with (tmp_path / "at_home" / "training_volumes.csv").open(newline="") as file:
        assert [row["case_id"] for row in csv.DictReader(file)] == ["one", "two, or so"]


def test_the_empty_key_of_a_killed_process_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "at_home").mkdir()
    (tmp_path / "at_home" / "key.txt").touch()
    first = training_ids(volumes("one"), tmp_path)
    assert first == training_ids(volumes("one"), tmp_path)
    assert stat.S_IMODE((tmp_path / "at_home" / "key.txt").stat().st_mode) == 0o600


def test_a_damaged_key_is_refused(tmp_path: Path) -> None:
    training_ids(volumes("one"), tmp_path)
    (tmp_path / "at_home" / "key.txt").write_text("")
    with pytest.raises(ValueError, match=r"key\.txt holds no key of 64 hexadecimal digits: delete it"):
        training_ids(volumes("one"), tmp_path)
