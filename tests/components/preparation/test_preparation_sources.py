"""What preparation takes as a case: manifests, companions, copies, damaged files."""

from __future__ import annotations

import json
import shutil

import nibabel as nib
import numpy as np
import pydicom
import pytest
from dicom_fuzzing import malformed_copy
from dicom_writing import write_series
from small_preparations import SIZE, THREADS, prepare, raw_folder, stamps, statuses, steps, write_scan

from medical_diffusion_components.data.datasets import load_cases
from medical_diffusion_components.data.splits import SPLITS
from medical_diffusion_components.preparation import preparation as module
from medical_diffusion_components.preparation.duplicates import Checked
from medical_diffusion_components.preparation.manifests import Manifest, write_manifest
from medical_diffusion_components.preparation.preparation import Preparation
from medical_diffusion_components.preparation.steps.load_scan import LoadScand
from medical_diffusion_components.preparation.steps.load_slice_stack import LoadSliceStack
from medical_diffusion_components.preparation.steps.resample import Resampled
from medical_diffusion_components.preparation.steps.scale_to_range import ScaleToRanged


def manifest_of(tmp_path, splits, value="x"):
    """A manifest of (case, split, source), each of a patient of its own, that says ``value`` of everything else."""
    keys = ("name", "description", "version", "licence", "access", "reference", "built_from", "split")
    cases = [
        {"case_id": name, "patient_id": f"patient_{name}", "split": split, "source": source}
        for name, split, source in splits
    ]
    write_manifest(Manifest(dict.fromkeys(keys, value), tuple(cases)), tmp_path / "manifest.json")
    return tmp_path / "manifest.json"


def test_splits_patients_and_licence_of_a_manifest_are_kept_and_absent_cases_counted(tmp_path):
    raw_folder(tmp_path, ("a", "b", "c"))
    places = zip("abcde", ("test", "training", "validation", "test", "training"))
    manifest = manifest_of(tmp_path, [(f"case_{c}", split, {"path": f"{c}.nii.gz"}) for c, split in places], "CC BY")
    report = prepare(tmp_path, manifest=manifest)
    assert (
        report.counts == {"made": 3, "skipped": 0, "refused": 0, "absent": 2, "aside": 0}
        and report.refused_share == 0.4
    )
    listed = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert [[case["case_id"] for case in listed[s]] for s in SPLITS] == [["case_b"], ["case_c"], ["case_a"]]
    assert listed["licence"] == "CC BY" and listed["test"][0]["patient_id"] == "patient_case_a"
    assert prepare(tmp_path, manifest=manifest, allow_absent=True).refused_share == 0


def test_a_companion_file_reaches_the_steps_of_its_case_alone(tmp_path):
    seen = {}

    class Look:
        def __call__(self, data):
            seen[data["case_id"]] = data.get("mask")
            return data

    raw_folder(tmp_path, ("a", "b", "c"))
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "b_outline.nii").write_bytes(b"x")
    masks = f"{tmp_path}/masks/{{case_id}}_outline.nii"
    prepare(tmp_path, more=[Look()], companions={"mask": masks, "other": None})
    assert seen == {"a": None, "b": masks.replace("{case_id}", "b"), "c": None}


def test_200_malformed_inputs_are_refused_or_read_as_if_whole(tmp_path, monkeypatch):
    # what was read as if whole is the same volume many times: here all are kept, to be compared
    def keep_all(results, *_):
        return Checked(sorted(results, key=lambda result: result.case_id), None)

    monkeypatch.setattr(module, "leave_duplicates", keep_all)
    rng = np.random.default_rng(0)
    raw, whole = tmp_path / "raw", tmp_path / "whole"
    write_scan(whole / "nifti.nii.gz", shape=(20, 16, 12))
    np.save(whole / "array.npy", rng.integers(0, 255, (9, 12, 10), dtype=np.uint8))
    write_series(whole / "dicom", rng.integers(0, 900, (12, 10, 6)), np.diag([-1.0, -1, 2, 1]), modality="MR")
    raw.mkdir()
    uid = pydicom.dcmread(next((whole / "dicom").iterdir())).SeriesInstanceUID.encode()
    for number in range(200):
        kind = ("nifti.nii.gz", "array.npy", "dicom")[number % 3]
        target = raw / f"{number:03d}-{kind}"
        if kind == "dicom":
            malformed_copy(whole / "dicom", target, rng)
            for file in target.rglob("*"):  # each a series of its own, of the same length
                file.write_bytes(file.read_bytes().replace(uid, uid[:-3] + b"%03d" % number))
            continue
        content = bytearray((whole / kind).read_bytes())
        damage = number // 3 % 4
        if damage == 0:
            content = content[: rng.integers(len(content))]
        elif damage == 1:
            for bit in rng.integers(0, 8 * (len(content) if kind[0] == "n" else 80), size=rng.integers(1, 4)):
                content[bit // 8] ^= 1 << (bit % 8)
        elif damage == 2:
            content = rng.bytes(rng.integers(0, 2000))
        else:
            start = rng.integers(len(content) if kind[0] == "n" else 100)
            content = content[:start] + content[start + 1 :]
        target.write_bytes(content)
    load = LoadScand("image", slice_stack=LoadSliceStack((1, 1, 2), "PSR"))
    chain = [load, Resampled("image", size=SIZE), ScaleToRanged("image")]
    good = Preparation(whole, tmp_path / "good", chain, THREADS).run()
    expected = {result.case_id: result.outputs[0]["sha256"] for result in good.results}
    report = Preparation(raw, tmp_path / "out", chain, THREADS, max_refused_share=1.0).run()
    assert {result.case_id.split("-")[1].split("_")[0] for result in report.results} == {"nifti", "array", "dicom"}
    made = [result for result in report.results if result.status == "made"]
    assert report.counts["refused"] > 150 and report.counts["refused"] + len(made) == len(report.results) >= 200
    for result in made:
        kind = result.case_id.split("-")[1].split("_")[0]
        assert result.outputs[0]["sha256"] == expected[kind], result.case_id
    assert not {"failed", "crashed", "worker_failed"} & {result.reason for result in report.results}


def test_companions_that_no_case_has_are_an_error_and_those_that_some_lack_a_remark(tmp_path):
    raw_folder(tmp_path, ("a", "b", "c"))
    with pytest.raises(ValueError, match="mask: none of the 3 cases has the file"):
        prepare(tmp_path, companions={"mask": f"{tmp_path}/maks/{{case_id}}.nii"})
    with pytest.raises(ValueError, match="the same file for every case"):
        prepare(tmp_path, companions={"mask": str(tmp_path / "raw" / "a.nii.gz")})
    write_scan(tmp_path / "raw" / "b_outline.nii.gz", 8)
    report = prepare(tmp_path, companions={"mask": f"{tmp_path}/raw/{{case_id}}_outline.nii.gz"})
    assert set(statuses(report)) == {"a", "b", "c"}  # the companion is no case
    assert "mask: 1 of 3 cases have one, 2 have none" in report.inventory.remarks
    assert report.files["aside"] == {"companion of a case (mask)": 1}


def test_a_volume_that_is_there_twice_is_kept_once(tmp_path):
    raw_folder(tmp_path)
    shutil.copy(tmp_path / "raw" / "a.nii.gz", tmp_path / "raw" / "z_copy.nii.gz")
    image = nib.load(tmp_path / "raw" / "b.nii.gz")
    turned = image.as_reoriented([[1, -1], [0, 1], [2, -1]])
    nib.save(nib.Nifti1Image(turned.get_fdata(), turned.affine), tmp_path / "raw" / "y_turned.nii.gz")  # float64
    report = prepare(tmp_path)
    assert {r.case_id: r.text for r in report.results if r.status == "aside"} == {
        "y_turned": "the same volume as case b",
        "z_copy": "the same volume as case a",
    }
    assert set(stamps(tmp_path)) == {f"{name}.nii.gz" for name in "abcd"} and report.refused_share == 0


def test_the_same_volume_in_two_splits_of_a_manifest_is_an_error_that_names_both(tmp_path):
    raw_folder(tmp_path, ("a", "b", "c"))
    shutil.copy(tmp_path / "raw" / "a.nii.gz", tmp_path / "raw" / "d.nii.gz")
    places = zip("abcd", ("training", "validation", "test", "test"))
    manifest = manifest_of(tmp_path, [(name, split, {"path": f"{name}.nii.gz"}) for name, split in places])
    with pytest.raises(ValueError, match=r"a \(training\) and d \(test\) are the same volume"):
        prepare(tmp_path, manifest=manifest)
    with pytest.raises(ValueError, match="lists no cases"):
        load_cases(tmp_path / "out", "training")


def test_one_study_in_two_splits_of_a_manifest_is_an_error_that_names_both(tmp_path):
    rng = np.random.default_rng(0)
    splits = []
    for number, split in enumerate(("training", "validation", "test", "test")):
        volume = rng.integers(0, 99, (6, 5, 4))
        options = {"patient_id": str(number), "series_uid": f"1.2.{number}", "study_uid": f"1.9.{number % 3}"}
        write_series(tmp_path / "raw" / str(number), volume, np.diag([1.0, 1, 2, 1]), **options)
        splits.append((f"c{number}", split, {"series_uid": f"1.2.{number}"}))
    with pytest.raises(ValueError, match=r"c0 \(training\) and c3 \(test\) are of one study"):
        prepare(tmp_path, manifest=manifest_of(tmp_path, splits))


@pytest.mark.parametrize("other", ["P1", "p 1", "P01"])
def test_one_patient_id_in_two_splits_of_a_manifest_is_an_error_that_names_both(tmp_path, other):
    rng = np.random.default_rng(0)
    splits = []
    patients = ("P1", "P2", "P3", other)  # two studies of the first one
    for number, split in enumerate(("training", "validation", "test", "test")):
        options = {"patient_id": patients[number], "series_uid": f"1.2.{number}", "study_uid": f"1.9.{number}"}
        write_series(tmp_path / "raw" / str(number), rng.integers(0, 99, (6, 5, 4)), np.diag([1.0, 1, 2, 1]), **options)
        splits.append((f"c{number}", split, {"series_uid": f"1.2.{number}"}))
    with pytest.raises(ValueError, match=r"c0 \(training\) and c3 \(test\) are of one PatientID") as failed:
        prepare(tmp_path, manifest=manifest_of(tmp_path, splits))
    assert other not in str(failed.value)


def test_a_patient_id_that_all_scans_of_a_manifest_share_is_a_remark(tmp_path):
    rng = np.random.default_rng(0)
    splits = []
    for number, split in enumerate(SPLITS):
        options = {"patient_id": "ANON7", "series_uid": f"1.2.{number}", "study_uid": f"1.9.{number}"}
        write_series(tmp_path / "raw" / str(number), rng.integers(0, 99, (6, 5, 4)), np.diag([1.0, 1, 2, 1]), **options)
        splits.append((f"c{number}", split, {"series_uid": f"1.2.{number}"}))
    report = prepare(tmp_path, manifest=manifest_of(tmp_path, splits))
    assert report.counts["made"] == 3
    assert any("bear one PatientID, though the manifest" in remark for remark in report.inventory.remarks)


def test_two_sessions_of_a_subject_in_two_splits_of_a_manifest_are_an_error_that_names_both(tmp_path):
    names = ("sub-1_ses-1", "sub-2_ses-1", "sub-01_ses-2")
    for seed, name in enumerate(names):
        write_scan(tmp_path / "raw" / f"{name}.nii.gz", seed)
    splits = [(f"c{n}", split, {"path": f"{name}.nii.gz"}) for n, (name, split) in enumerate(zip(names, SPLITS))]
    with pytest.raises(ValueError, match=r"c0 \(training\) and c2 \(test\) are of one subject"):
        prepare(tmp_path, manifest=manifest_of(tmp_path, splits))


def test_broken_links_above_the_allowed_share_are_an_error_before_anything_is_made(tmp_path):
    raw = raw_folder(tmp_path)
    (raw / "gone").symlink_to(raw / "nowhere")
    with pytest.raises(ValueError, match="1 links in .* point nowhere, beside 4 cases"):
        prepare(tmp_path, max_refused_share=0.1)
    assert not (tmp_path / "out" / "images").exists()
    assert prepare(tmp_path, max_refused_share=0.2).files["aside"] == {"broken link": 1}


@pytest.mark.parametrize("value", [20231101, 2023.5, True, ["a"]])
def test_a_folder_that_the_command_line_took_for_something_else_is_explained(tmp_path, value):
    with pytest.raises(ValueError, match=r"Write \./ before the name"):
        Preparation(value, tmp_path / "out", steps(), THREADS)


def bids(tmp_path, subject, session, seed):
    name = f"sub-{subject}_ses-{session}_T1w.nii.gz"
    return write_scan(tmp_path / "raw" / f"sub-{subject}" / f"ses-{session}" / "anat" / name, seed)


def test_two_patients_who_share_a_volume_are_one_and_that_is_said(tmp_path):
    for number, subject in enumerate(("01", "02", "03", "04")):
        bids(tmp_path, subject, 2, number)
    shared = bids(tmp_path, "01", 1, 9)
    shutil.copy(shared, bids(tmp_path, "02", 1, 9))
    report = prepare(tmp_path)
    owners = {result.case_id[:12]: result.patient_id for result in report.results}
    assert owners["sub-01_ses-2"] == owners["sub-02_ses-2"] == "sub-01" and owners["sub-03_ses-2"] == "sub-03"
    listed = [entry for split in SPLITS for entry in load_cases(tmp_path / "out", split)]
    assert {entry["patient_id"] for entry in listed} == {"sub-01", "sub-03", "sub-04"} and len(listed) == 5
    (said,) = [remark for remark in report.inventory.remarks if "are taken for one patient" in remark]
    assert "is the same volume as scans of other patients (sub-01, sub-02)" in said


@pytest.mark.parametrize("told", [True, False])
def test_a_volume_of_three_patients_or_of_two_that_are_told_apart_joins_none(tmp_path, told):
    subjects = ("01", "02", "03", "04")
    for number, subject in enumerate(subjects):
        bids(tmp_path, subject, 2, number)
    for subject in subjects[: 2 if told else 3]:
        bids(tmp_path, subject, 1, 9)
    table = tmp_path / "who.csv"
    table.write_text("".join(f"sub-{subject},sub-{subject}\n" for subject in subjects))
    report = prepare(tmp_path, **({"patients": table} if told else {}))
    assert {result.patient_id for result in report.results if result.outputs} == {f"sub-{s}" for s in subjects}
    (said,) = [remark for remark in report.inventory.remarks if "the same volume" in remark]
    assert said.endswith("They stay different patients")
