"""What is said of a data set, and what is left out, without a generator."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from medical_diffusion_components.dataset_release import ReleaseError, ReleaseFacts, croissant, write_volumes
from medical_diffusion_components.dataset_release.dataset_release import DatasetRelease, check_replaceable
from medical_diffusion_components.dataset_release.documents import card, datasheet, licence_text
from medical_diffusion_components.dataset_release.facts import (
    check_date,
    check_releasable,
    licence_of,
    licence_url,
    public_audit,
    public_evaluation,
    public_note,
)
from medical_diffusion_components.dataset_release.layout import bids_files, splits_of, table
from medical_diffusion_components.files import PACKAGE_NAME

PATIENTS = {"data": "the user's dataset_dir", "weights_sha256": "a" * 64, "versions": {PACKAGE_NAME: "0.2.0"}}
INVENTED = {**PATIENTS, "data": "embedded template cohort", "notice": "These are not patients."}
ROWS = [
    {"id": "sub-000003", "image": "sub-000003/anat/sub-000003_T1w.nii.gz", "split": "training", "seed": 3, "age": 71.5},
    {"id": "sub-000005", "image": "sub-000005/anat/sub-000005_T1w.nii.gz", "split": "test", "seed": 5, "age": None},
]


def facts(**others) -> ReleaseFacts:
    known = {
        "title": "Brains",
        "bundle": "adni_ldm 0.2.0",
        "modality": "MR",
        "image_size": (10, 20, 30),
        "spacing": (1.0, 2.0, 2.5),
        "licence": "CC-BY-4.0",
        "creator": "Clinic",
        "version": "1.2.0",
        "date": "2026-01-02",
        "weights": INVENTED,
        "sampler": "ddim",
        "steps": 7,
        "seed": 3,
        "drawn": 5,
        "splits": {"training": 1, "validation": 0, "test": 1},
        "audit": {"headline": "No copy found."},
        "evaluation": None,
        "layout": "bids",
    }
    return ReleaseFacts(**{**known, **others})


def everything(of: ReleaseFacts) -> dict[str, str]:
    return {
        "card": card(of),
        "datasheet": datasheet(of),
        "licence": licence_text(of),
        "croissant": json.dumps(croissant(of, ROWS, "0" * 64)),
        "bids": bids_files(ROWS, of)["dataset_description.json"],
    }


def test_every_document_of_what_was_not_audited_says_so() -> None:
    for name, text in everything(facts(audit=None)).items():
        assert "NOT AUDITED" in text and "No copy found." not in text, name
    for name, text in everything(facts()).items():
        assert "NOT AUDITED" not in text and "2 of 5 drawn" in text, name


def test_that_no_patient_was_seen_is_said_of_invented_subjects_alone() -> None:
    for name, text in everything(facts()).items():
        assert "No patient was seen" in text and "scans of patients" not in text, name
    for name, text in everything(facts(weights=PATIENTS)).items():
        assert "No patient was seen" not in text and "scans of patients (the user's dataset_dir)" in text, name


def test_the_header_is_yaml_with_a_licence_that_hugging_face_knows() -> None:
    header = yaml.safe_load(card(facts()).split("---\n")[1])
    assert header["license"] == "cc-by-4.0" and header["size_categories"] == ["n<1K"]
    assert "synthetic" in header["tags"] and "not-audited" not in header["tags"]
    assert header["configs"][0]["data_files"][0] == {"split": "train", "path": "splits/training.csv"}
    own = yaml.safe_load(card(facts(licence="ODbL-1.0", audit=None)).split("---\n")[1])
    assert (own["license"], own["license_name"]) == ("other", "ODbL-1.0") and "not-audited" in own["tags"]


@pytest.mark.parametrize("of", [facts(), facts(audit=None, layout="dicom", creator=None)], ids=["bids", "dicom"])
def test_mlcroissant_accepts_the_description(of: ReleaseFacts, tmp_path: Path) -> None:
    if find_spec("mlcroissant") is None:  # not imported here: its logging closes the stream that pytest has captured
        pytest.skip("validates Croissant: pip install mlcroissant")
    (tmp_path / "croissant.json").write_text(json.dumps(croissant(of, ROWS, "0" * 64)))
    command = [Path(sys.executable).parent / "mlcroissant", "validate", "--jsonld", "croissant.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "Done" in done.stderr, done.stderr[-2000:]
    assert "error" not in done.stderr.lower() and "warning" not in done.stderr.lower(), done.stderr[-2000:]
    content = json.loads((tmp_path / "croissant.json").read_text())
    assert content["rai:hasSyntheticData"] is True and content["rai:dataLimitations"]
    types = {field["name"]: field["dataType"] for field in content["recordSet"][0]["field"]}
    assert (types["id"], types["seed"], types["age"]) == ("sc:Text", "sc:Integer", "sc:Float")


def test_without_a_licence_only_invented_subjects_are_released() -> None:
    assert licence_of(None, INVENTED) == "CC-BY-4.0" and licence_of("CC0-1.0", PATIENTS) == "CC0-1.0"
    with pytest.raises(ReleaseError, match="the generator was trained on the user's dataset_dir"):
        licence_of(None, PATIENTS)
    assert licence_url("CC0-1.0") == "https://creativecommons.org/publicdomain/zero/1.0/"
    assert licence_url("ODbL-1.0") == "https://spdx.org/licenses/ODbL-1.0.html"


GOOD = {"weights_sha256": "a" * 64, "audit": {"verdict": "released"}}


@pytest.mark.parametrize(("note", "reason"), [
    ({**GOOD, "synthetic": False}, "edited from a real scan"),
    ({**GOOD, "edited_from": None}, "edited from a real scan"),
    ({**GOOD, "weights_sha256": "b" * 64}, "made by the weights bbbb"),
    ({**GOOD, "audit": {"verdict": "withheld"}}, "the verdict 'withheld'"),
    ({"weights_sha256": "a" * 64}, "the verdict None"),
])  # fmt: skip
def test_what_is_no_fresh_audited_sample_is_refused(note: dict, reason: str) -> None:
    check_releasable({Path("good.nii.gz"): GOOD}, "a" * 64, audited=True)
    with pytest.raises(ReleaseError, match=reason):
        check_releasable({Path("good.nii.gz"): GOOD, Path("bad.nii.gz"): note}, "a" * 64, audited=True)


def test_public_reports_name_no_volume_of_the_training_set() -> None:
    found = {"nearest_training_volume": "f" * 64}
    report = {
        "headline": "h", "note": "n", "protocol": "p", "volumes": {}, "flagged": {}, "holdout_share": {},
        "data_copying_z": 0.1, "membership": {}, "published_rule": {}, "samples_sha256": ["f" * 64],
        "memorised": {"count": 1, "share": 0.1, "interval": [0, 1], "sources": ["f" * 64]},
        "duplicates_in_training": [{"one": "f" * 64, "other": "f" * 64}], "closest_pairs": [found],
        "facts": {"alpha": 0.05, "training_volumes": 3, "training_patients": 3, "held_out_patients": 20,
                  "synthetic_volumes": 5, "weights_sha256": "a" * 64, "versions": {}, "data_sha256": "f" * 64},
    }  # fmt: skip
    public = public_audit(report)
    assert "f" * 64 not in json.dumps(public)
    assert (
        public["memorised"] == {"count": 1, "share": 0.1, "interval": [0, 1]} and public["duplicates_in_training"] == 1
    )
    evaluation = {"rows": {"a": 1}, "audit": {"closest_pairs": [found]}, "data": {"data_sha256": "f" * 64}}
    assert public_evaluation(evaluation) == {"rows": {"a": 1}}
    note = {"seed": 1, "seconds": 2.0, "audit": {"verdict": "released", "nearest_training_volume": "f" * 64}}
    assert public_note(note) == {"synthetic": True, "seed": 1, "audit": {"verdict": "released"}}


def test_a_volume_keeps_its_split_in_a_larger_set() -> None:
    few, many = splits_of(range(60), 0.2, 0.1), splits_of(range(200), 0.2, 0.1)
    assert {number: many[number] for number in few} == few
    assert sum(split == "validation" for split in many.values()) == pytest.approx(40, abs=15)
    with pytest.raises(ReleaseError, match="at least 3 volumes, got 2"):
        splits_of([4, 5], 0.1, 0.1)


def test_conditions_are_columns_of_the_table(tmp_path: Path) -> None:
    (tmp_path / "one.nii.gz").write_bytes(b"voxels")
    notes = {
        4: {"seed": 4, "conditions": {"age": 70.5, "sex": "F"}},
        6: {"seed": 6, "conditions": {"age": None, "sex": "M"}},
    }
    volumes = {number: (tmp_path / "one.nii.gz", note) for number, note in notes.items()}
    rows = write_volumes(tmp_path / "set", volumes, dict.fromkeys(notes, "test"), "T1w")
    found = list(csv.DictReader(io.StringIO(table(rows))))
    assert [(row["id"], row["age"], row["sex"]) for row in found] == [
        ("sub-000004", "70.5", "F"),
        ("sub-000006", "", "M"),
    ]
    people = bids_files(rows, facts())["participants.tsv"].splitlines()
    assert people[1:] == ["sub-000004\ttest\t4\t70.5\tF", "sub-000006\ttest\t6\tn/a\tM"]
    assert (tmp_path / "set" / rows[0]["image"]).read_bytes() == b"voxels"


def test_only_a_release_gives_way_to_another(tmp_path: Path) -> None:
    check_replaceable(tmp_path / "none")
    folder = tmp_path / "release"
    folder.mkdir()
    (folder / "one.txt").write_text("1")
    (folder / "SHA256SUMS").write_text("0  one.txt\n")
    check_replaceable(folder)
    (folder / "SHA256SUMS").write_text("somebody's own list\n\n")
    with pytest.raises(ReleaseError, match=r"holds what no release has written, such as one.txt"):
        check_replaceable(folder)
    (folder / "SHA256SUMS").write_text("0  one.txt\n")
    (folder / "thesis.txt").write_text("of great value")
    with pytest.raises(ReleaseError, match=r"holds what no release has written, such as thesis.txt"):
        check_replaceable(folder)
    with pytest.raises(ReleaseError, match="is a file"):
        check_replaceable(folder / "one.txt")


@pytest.mark.parametrize("date", ["31.12.2026", "2026-13-01", "20261127", "2026-W01-1", 2026, "soon"])
def test_a_date_in_another_form_is_refused(date) -> None:
    check_date("2026-11-27")
    with pytest.raises(ReleaseError, match="expected date_published as YYYY-MM-DD, got"):
        check_date(date)


@pytest.mark.parametrize(("samples", "release"), [("a", "a"), ("a", "a/b"), ("a/b", "a")])
def test_a_release_that_would_replace_the_drawn_volumes_is_refused(samples: str, release: str, tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"for its hash alone")
    asked = DatasetRelease(
        *(tmp_path / name for name in ("model.pt", ".", samples, release, "reports")), 3, 0, "ddim", 2, "nifti", {}
    )
    with pytest.raises(ReleaseError, match="expected release_dir and samples_dir to lie apart"):
        asked.run()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.pt"]
