from __future__ import annotations

import hashlib
import json

import pytest

from medical_diffusion_components.preparation import manifests as module
from medical_diffusion_components.preparation.manifests import (
    METADATA_KEYS,
    Manifest,
    manifest_hash,
    read_manifest,
    write_manifest,
)

METADATA = dict.fromkeys(METADATA_KEYS, "something")


def case(name: str, patient: str, split: str, **more) -> dict:
    return {"case_id": name, "patient_id": patient, "split": split, "source": {"path": f"{name}.npy"}, **more}


CASES = (
    case("c", "p3", "test", kind="new"),
    case("b", "p2", "validation", kind="old"),
    case("a2", "p1", "training", kind="old"),
    case("a1", "p1", "training", kind="new"),
)


@pytest.fixture
def path(tmp_path):
    write_manifest(Manifest(METADATA, CASES), tmp_path / "m.json")
    return tmp_path / "m.json"


def edited(path, edit):
    """Change the file by hand, as a user might."""
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
    return path


def test_what_is_read_is_what_was_written(path):
    manifest = read_manifest(path)
    assert manifest.metadata == METADATA
    assert sorted(manifest.cases, key=str) == sorted(CASES, key=str)
    assert manifest.counts == {"cases": 4, "patients": 3, "training": 2, "validation": 1, "test": 1}


def test_the_order_of_cases_changes_neither_bytes_nor_hash(path):
    digest = write_manifest(Manifest(METADATA, CASES[::-1]), path.with_name("n.json"))
    assert path.with_name("n.json").read_bytes() == path.read_bytes()
    assert digest == manifest_hash(read_manifest(path)) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_another_split_is_another_hash(path):
    moved = Manifest(METADATA, (*CASES, case("d", "p4", "test")))
    stayed = Manifest(METADATA, (*CASES, case("d", "p4", "training")))
    assert manifest_hash(moved) != manifest_hash(stayed)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(path, monkeypatch):
    before = path.read_bytes()
    monkeypatch.setattr(module.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk")))
    with pytest.raises(OSError, match="disk"):
        write_manifest(Manifest(METADATA, CASES[:2] + CASES[3:]), path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_selecting_keeps_the_splits(path):
    manifest = Manifest(METADATA, (*CASES, case("e", "p5", "test", kind="old")))
    assert [c["case_id"] for c in manifest.select("kind", ["old"]).cases] == ["b", "a2", "e"]
    with pytest.raises(ValueError, match=r"no case has kind 'odd'; the values are \['new', 'old'\]"):
        manifest.select("kind", ["odd"])
    with pytest.raises(ValueError, match="no case in validation"):
        manifest.select("kind", ["new"])
    with pytest.raises(ValueError, match="case 'c' has no 'colour'"):
        manifest.select("colour", ["red"])


WRONG = {
    "no 'licence'": lambda m: m.pop("licence"),
    "list of cases under 'validation'": lambda m: m.pop("validation"),
    "training case 1: expected an object": lambda m: m["training"].__setitem__(1, "a.nii.gz"),
    "case 'a1' has no 'source'": lambda m: m["training"][0].pop("source"),
    "patient 'p1' is in training and, by case 'b', in validation": lambda m: m["validation"][0].update(patient_id="p1"),
    "case id 'a1' is used twice": lambda m: m["training"][1].update(case_id="a1"),
    "case_id must be letters": lambda m: m["training"][0].update(case_id="../a1"),
    "patient_id must be letters": lambda m: m["training"][0].update(patient_id=""),
    "case 'a1': source must be": lambda m: m["training"][0].update(source={"url": "x"}),
    "source path must be relative": lambda m: m["training"][0].update(source={"path": "x/../../y"}),
    "source series_uid must be a DICOM UID": lambda m: m["training"][0].update(source={"series_uid": "1.2.x"}),
    "exactly one of": lambda m: m["training"][0]["source"].update(series_uid="1.2"),
    "no case in test": lambda m: m["test"].clear(),
    "'counts' says": lambda m: m["training"].pop(),
}


@pytest.mark.parametrize("message", WRONG)
def test_a_broken_manifest_is_refused_with_file_and_reason(path, message):
    with pytest.raises(ValueError, match=message) as error:
        read_manifest(edited(path, WRONG[message]))
    assert str(path) in str(error.value)


def test_a_truncated_file_is_refused(path):
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"m\.json: not a JSON file"):
        read_manifest(path)


@pytest.mark.parametrize(("one", "other"), [("0012", "12"), ("P7", "p007")])
def test_patients_whose_ids_differ_in_case_or_zeros_alone_are_in_one_split(one, other):
    Manifest(METADATA, (*CASES, case("x", one, "test"), case("y", other, "test")))
    with pytest.raises(
        ValueError, match=f"patients '{one}' \\(case 'x', test\\) and '{other}' \\(case 'y', training\\)"
    ):
        Manifest(METADATA, (*CASES, case("x", one, "test"), case("y", other, "training")))


def test_one_source_is_in_one_split():
    again = {**case("x", "p9", "training"), "source": {"path": "c.npy"}}
    with pytest.raises(ValueError, match="cases 'c' \\(test\\) and 'x' \\(training\\) are made from one source"):
        Manifest(METADATA, (*CASES, again))
