from __future__ import annotations

import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from dicom_writing import write_series

from medical_diffusion_components.preparation.manifests import Manifest
from medical_diffusion_components.preparation.raw_cases import cases_of_folder, cases_of_manifest

METADATA = dict.fromkeys(
    ("name", "description", "version", "licence", "access", "reference", "built_from", "split"), "x"
)


def nifti(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.zeros((3, 4, 5), np.float32), np.eye(4)), path)


def dicom(folder, number=1, patient="P", names=None):
    names = names or [f"{number}-{k}.dcm" for k in range(4)]
    options = {"series_uid": f"1.2.{number}", "series_number": number, "patient_id": patient, "names": names}
    write_series(folder, np.zeros((6, 5, 4)), np.diag([1.0, 1, 2, 1]), **options)


def manifest(sources):
    splits = ("training", "validation", "test")
    cases = [
        {"case_id": f"c{i}", "patient_id": f"p{i}", "split": splits[i % 3], "source": source}
        for i, source in enumerate(sources)
    ]
    return Manifest(METADATA, tuple(cases))


def test_every_nifti_file_and_every_series_is_a_case_named_by_its_place(tmp_path):
    nifti(tmp_path / "sub-1" / "scan a.nii.gz")
    nifti(tmp_path / "b.nii")
    nifti(tmp_path / ".hidden" / "c.nii")
    np.save(tmp_path / "slices.npy", np.zeros((2, 3, 4)))
    (tmp_path / "notes.txt").write_text("not an image")
    dicom(tmp_path / "ct", 1)
    cases = {case.case_id: case for case in cases_of_folder(tmp_path)}
    assert set(cases) == {"sub-1_scan-a", "b", "slices", "ct"}
    assert cases["ct"].scan.series_uid == "1.2.1" and cases["ct"].scan.path == str(tmp_path / "ct")
    assert cases["b"].patient_id == "b" and cases["b"].split is None


def test_series_that_share_a_folder_are_told_apart_and_their_patients_recognised_without_being_named(tmp_path):
    dicom(tmp_path / "mixed", 1, "DOE^JANE")
    dicom(tmp_path / "mixed", 2, "DOE^JANE")
    dicom(tmp_path / "other", 3, "ROE^RICHARD")
    cases = cases_of_folder(tmp_path)
    assert len({case.case_id for case in cases}) == 3
    by_uid = {case.scan.series_uid: case for case in cases}
    assert by_uid["1.2.1"].patient_id == by_uid["1.2.2"].patient_id != by_uid["1.2.3"].patient_id
    assert not any("DOE" in text for case in cases for text in (case.case_id, case.patient_id))


def test_a_pattern_keeps_the_volumes_of_a_patient_together(tmp_path):
    for name in ("sub-1_a", "sub-1_b", "sub-2_a"):
        nifti(tmp_path / f"{name}.nii")
    patients = [case.patient_id for case in cases_of_folder(tmp_path, r"^(sub-\d+)")]
    assert patients == ["sub-1", "sub-1", "sub-2"]
    with pytest.raises(ValueError, match="finds no patient id"):
        cases_of_folder(tmp_path, r"^(ses-\d+)")


def test_a_folder_of_damaged_dicom_files_is_a_case_so_that_it_is_refused_and_not_overlooked(tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "1.dcm").write_bytes(b"")
    nifti(tmp_path / "b.nii")
    assert [case.case_id for case in cases_of_folder(tmp_path)] == ["b", "broken"]


def test_files_of_one_name_in_two_formats_are_two_cases_of_one_patient(tmp_path):
    for name in ("a.nii", "a.nii.gz", "b.nii"):
        nifti(tmp_path / name)
    cases = cases_of_folder(tmp_path)
    patients = {case.found.path: case.patient_id for case in cases}
    assert len({case.case_id for case in cases}) == 3
    assert (
        patients[str(tmp_path / "a.nii")] == patients[str(tmp_path / "a.nii.gz")] != patients[str(tmp_path / "b.nii")]
    )


def test_sources_of_all_kinds_are_found_and_what_is_absent_is_said(tmp_path):
    nifti(tmp_path / "train" / "1.nii.gz")
    dicom(tmp_path / "some" / "where", 7)
    nifti(tmp_path / "002_S_0295" / "MPR" / "I118671" / "ADNI_002_S_0295_MR_I118671.nii")
    dicom(tmp_path / "002_S_0295" / "MPR" / "2006-04-18" / "I45108", 8)
    (tmp_path / "flat_I77.NII.GZ").write_bytes((tmp_path / "train" / "1.nii.gz").read_bytes())
    sources = [
        {"path": "train/1.nii.gz"},
        {"series_uid": "1.2.7", "num_images": 4},
        {"image_id": "I118671"},
        {"image_id": "45108"},
        {"image_id": "I77"},
        {"path": "train/2.nii.gz"},
        {"series_uid": "1.2.9"},
        {"image_id": "I5"},
    ]
    cases = cases_of_manifest(manifest(sources), tmp_path)
    assert [case.scan and os.path.relpath(case.scan.path, tmp_path) for case in cases] == [
        "train/1.nii.gz",
        "some/where",
        "002_S_0295/MPR/I118671/ADNI_002_S_0295_MR_I118671.nii",
        "002_S_0295/MPR/2006-04-18/I45108",
        "flat_I77.NII.GZ",
        None,
        None,
        None,
    ]
    assert cases[1].scan[1:3] == ("1.2.7", 4) and cases[1].split == "validation"
    assert "train/2.nii.gz" in cases[5].absent and "1.2.9" in cases[6].absent


def test_a_series_downloaded_twice_is_not_chosen_from_by_chance(tmp_path):
    for folder in ("a", "b"):
        dicom(tmp_path / folder, 1)
    dicom(tmp_path / "c", 2)
    cases = cases_of_manifest(manifest([{"series_uid": f"1.2.{n}"} for n in (1, 2, 3)]), tmp_path)
    assert cases[0].scan is None and "found it in 2: a, b" in cases[0].absent


def test_the_wrong_folder_is_noticed_before_anything_is_done(tmp_path):
    sources = [{"path": f"train/{n}.npy"} for n in range(3)]
    with pytest.raises(FileNotFoundError, match=r"none of the 3 cases of x is in .*expected train/0.npy"):
        cases_of_manifest(manifest(sources), tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder"):
        cases_of_folder(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no NIfTI file"):
        cases_of_folder(tmp_path)


def test_the_index_reads_a_folder_again_when_a_file_is_changed_in_place_even_with_its_old_time(tmp_path):
    raw, index = tmp_path / "raw", tmp_path / "index.json"
    dicom(raw / "a", 1)
    dicom(raw / "b", 2)
    cases_of_folder(raw, index_file=index)
    content = json.loads(index.read_text())
    for record in content["folders"]["a"][1]:
        record[1] = "9.9"  # so that reading again would show
    index.write_text(json.dumps(content))
    for path in (raw / "b").iterdir():
        before = path.stat()
        path.write_bytes(path.read_bytes().replace(b"1.2.2", b"1.2.3"))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    cases = {case.case_id: case for case in cases_of_folder(raw, index_file=index)}
    assert cases["a"].scan.series_uid == "9.9" and cases["b"].scan.series_uid == "1.2.3"
    assert cases_of_folder(raw / "a", index_file=index)[0].scan.series_uid == "1.2.1"  # another folder's is no use


class _WithoutTimeOfChange:
    """What ``stat`` says on systems whose ``st_ctime`` is that of a file's creation."""

    st_ctime_ns = 0

    def __init__(self, stat):
        self.stat = stat

    def __getattr__(self, name):
        return getattr(self.stat, name)


def test_the_index_reads_a_folder_again_by_the_time_of_writing_alone(tmp_path, monkeypatch):
    raw, index, stat = tmp_path / "raw", tmp_path / "index.json", Path.stat
    monkeypatch.setattr(Path, "stat", lambda path, **options: _WithoutTimeOfChange(stat(path, **options)))
    dicom(raw / "b", 2)
    assert cases_of_folder(raw, index_file=index)[0].scan.series_uid == "1.2.2"
    for path in (raw / "b").iterdir():
        path.write_bytes(path.read_bytes().replace(b"1.2.2", b"1.2.3"))  # of the same size
    assert cases_of_folder(raw, index_file=index)[0].scan.series_uid == "1.2.3"
