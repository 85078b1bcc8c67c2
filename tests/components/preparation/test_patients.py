"""Whose scan is whose, where hands, hospitals and anonymisers have written it differently."""

from __future__ import annotations

import hashlib
import re
import unicodedata

import nibabel as nib
import numpy as np
import pytest
from dicom_writing import stable_uid, write_series

from medical_diffusion_components.preparation.bids import read_participants
from medical_diffusion_components.preparation.inventory import Selection, take_inventory
from medical_diffusion_components.preparation.patients import (
    PLACEHOLDERS,
    PatientTable,
    group_patients,
    read_patient_table,
)
from medical_diffusion_components.preparation.steps import LoadScan

AFFINE = np.diag([1.0, 1, 2, 1])


def scan(folder, patient, **elements):
    def adjust(dataset, _):
        for name, value in elements.items():
            setattr(dataset, name, value)

    uids = {"series_uid": stable_uid("series", folder.name), "study_uid": stable_uid("study", folder.name)}
    volume = np.random.default_rng(0).integers(0, 99, (6, 5, 4))
    write_series(folder, volume, AFFINE, modality="MR", patient_id=patient, adjust=adjust, **uids)


def nifti(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.random.default_rng(0).normal(size=(6, 5, 4)).astype(np.float32), AFFINE), path)


def patients(root):
    inventory = take_inventory(root)
    return {case.case_id: case.patient_id for case in inventory.cases}, inventory.remarks


def test_a_pattern_that_is_no_regular_expression_is_named(tmp_path):
    nifti(tmp_path / "a.nii.gz")
    with pytest.raises(ValueError, match="patient_pattern '\\(\\[' is no regular expression: unterminated"):
        take_inventory(tmp_path, Selection(patient_pattern="(["))


def test_the_patient_of_a_pattern_is_its_first_group(tmp_path):
    nifti(tmp_path / "site-A" / "p07_t1.nii.gz")
    (case,) = take_inventory(tmp_path, Selection(patient_pattern=r"(p\d+)_(t\d)")).cases
    assert case.patient_id == "p07"
    for pattern in (r"p\d+", r"q(\d+)", r"p07(\d*)"):
        with pytest.raises(ValueError, match=r"finds no patient id \(its first group\) in 'site-A/p07_t1.nii.gz'"):
            take_inventory(tmp_path, Selection(patient_pattern=pattern))


def test_subjects_that_differ_in_case_alone_are_one_and_that_is_said(tmp_path):
    for name in ("sub-A/sub-A_T1w", "sub-a/sub-a_T1w", "sub-b/sub-b_T1w"):
        nifti(tmp_path / f"{name}.nii.gz")
    found, remarks = patients(tmp_path)
    assert sorted(found.values()) == ["sub-A", "sub-A", "sub-b"]
    assert any("1 subjects differ in case or leading zeros alone (sub-A and sub-a)" in remark for remark in remarks)


def test_subjects_that_differ_in_leading_zeros_alone_are_one_and_that_is_said(tmp_path):
    for name in ("sub-1_T1w", "sub-01_T1w", "sub-001_ses-2_T1w", "sub-10_T1w", "sub-100_T1w"):
        nifti(tmp_path / f"{name}.nii.gz")
    found, remarks = patients(tmp_path)
    assert len(set(found.values())) == 3 and len({found[f"sub-{n}_T1w"] for n in ("1", "10", "100")}) == 3
    assert found["sub-1_T1w"] == found["sub-01_T1w"] == found["sub-001_ses-2_T1w"]
    assert any("leading zeros alone (sub-001 and sub-01 and sub-1)" in remark for remark in remarks)


@pytest.mark.parametrize("other", ["p1", "P1   ", " P1", "P 1"])
def test_case_and_blanks_of_a_patient_id_count_for_nothing(tmp_path, other):
    for name, patient in {"a": "P1", "b": other, "c": "P2"}.items():
        scan(tmp_path / name, patient)
    found, _ = patients(tmp_path)
    assert found["a"] == found["b"] != found["c"]


def test_slices_of_one_series_may_write_the_patient_id_differently(tmp_path):
    scan(tmp_path / "a", "P1", StudyInstanceUID="1.5")
    for number, path in enumerate(sorted((tmp_path / "a").iterdir())):
        if number % 2:
            content = path.read_bytes()
            assert content.count(b"LO\x02\0P1") == 1
            path.write_bytes(content.replace(b"LO\x02\0P1", b"LO\x02\0p1"))
    (case,) = take_inventory(tmp_path).cases
    assert LoadScan()(case.scan).shape == (1, 6, 5, 4)


def test_one_frame_of_reference_under_two_patient_ids_is_one_patient_and_that_is_said(tmp_path):
    for name, frame in {"a": "1.7", "b": "1.7", "c": "1.8"}.items():
        scan(tmp_path / name, f"P {name}", FrameOfReferenceUID=frame)
    found, remarks = patients(tmp_path)
    assert found["a"] == found["b"] != found["c"]
    assert any("several PatientIDs within one study, frame of reference" in remark for remark in remarks)


def test_a_name_with_a_date_of_birth_under_two_patient_ids_is_said_and_joins_nothing(tmp_path):
    for name, born in {"a": "19500101", "b": "19500101", "c": "19600101"}.items():
        scan(tmp_path / name, f"P {name}", PatientName="Miller^Anna", PatientBirthDate=born)
    found, remarks = patients(tmp_path)
    assert len(set(found.values())) == 3
    assert any(remark.startswith("1 names with a date of birth") for remark in remarks)
    assert not any("Miller" in remark or "1950" in remark for remark in remarks)


@pytest.mark.parametrize("placeholder", ["ANONYMOUS", "Unknown", "0", "N/A"])
def test_a_patient_id_that_reads_like_none_is_said(tmp_path, placeholder):
    for name, patient in {"a": placeholder, "b": placeholder, "c": "P7"}.items():
        scan(tmp_path / name, patient)
    found, remarks = patients(tmp_path)
    assert found["a"] == found["b"] != found["c"]
    assert any(remark.startswith("the PatientID of 2 scans reads like none") for remark in remarks)


def test_tables_of_participants_are_read_as_people_write_them(tmp_path):
    content = "participant_id\tage\tsex\n01\t70\n\nsub-02\tN/A\tM\nsub-02\tn/a\tM\n"
    (tmp_path / "participants.tsv").write_text(content, encoding="utf-16")
    for name in ("01", "02"):
        nifti(tmp_path / f"sub-{name}" / "anat" / f"sub-{name}_T1w.nii.gz")
    assert [case.about for case in take_inventory(tmp_path).cases] == [{"age": "70"}, {"sex": "M"}]


@pytest.mark.parametrize(
    ("columns", "rows", "about", "remarks"),
    [
        ("participant_id\tAge\tSEX", ["sub-01\t70\tF"], {"age": "70", "sex": "F"}, []),
        ("participant_id\tage_at_scan", ["sub-01\t70"], {}, ["has none of the columns age, sex and group"]),
        ("participant_id\tage\tsex", ["sub-01\tNaN\t-", "sub-02\tunknown\tM"], {}, []),
        (
            "participant_id\tage",
            ["sub-01\t90+", "sub-02\t61 y", "sub-03\t60,5"],
            {"age": "90+"},
            [r"no numbers \(2, such as 61 y\)"],
        ),
        ("participant_id\tage", ["sub-01\t999", "sub-02\t-1", "sub-03\t0"], {"age": "999"}, ["of nobody, such as -1"]),
        (
            "participant_id\tsex\tgroup",
            ["sub-01\tF\tAD", "sub-02\tf\tAD", "sub-03\tM\tCN"],
            {"sex": "F", "group": "AD"},
            [r"one sex in several ways \(F and f\)"],
        ),
    ],
)
def test_what_a_table_of_participants_leaves_open_is_said(tmp_path, columns, rows, about, remarks):
    (tmp_path / "Participants.TSV").write_text("\ufeff" + "\r\n".join([columns, *rows, ""]), encoding="utf-8")
    nifti(tmp_path / "sub-01" / "anat" / "sub-01_T1w.nii.gz")
    inventory = take_inventory(tmp_path)
    assert inventory.cases[0].about == about
    assert len(inventory.remarks) == len(remarks)
    for remark, expected in zip(inventory.remarks, remarks):
        assert re.search(expected, remark)


def test_numbers_of_spreadsheets_are_the_patients_that_they_stand_for(tmp_path):
    for name in "ab":
        nifti(tmp_path / "raw" / f"{name}.nii.gz")
    who = table(tmp_path / "who.csv", "file,patient", "a.nii.gz,12.0", "b.nii.gz,012")
    inventory = take_inventory(tmp_path / "raw", who)
    assert len({case.patient_id for case in inventory.cases}) == 1
    assert any("written in several ways (012 and 12.0)" in remark for remark in inventory.remarks)


def test_a_table_that_is_no_utf_8_or_contradicts_itself_is_named(tmp_path):
    table = tmp_path / "participants.tsv"
    table.write_bytes("participant_id\tgroup\nsub-01\tgesünder\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"participants.tsv: expected a text in UTF-8, but byte 31"):
        read_participants([table])
    table.write_text("participant_id\tage\nsub-01\t70\nsub-01\t71\n")
    with pytest.raises(ValueError, match="listed twice with different values"):
        read_participants([table])


def table(path, *lines):
    path.write_text("\n".join(lines) + "\n")
    return Selection(patients=path)


def test_a_line_of_the_table_that_names_no_scan_is_said(tmp_path):
    raw = tmp_path / "raw"
    for name in ("a", "b"):
        nifti(raw / f"{name}.nii.gz")
    inventory = take_inventory(raw, table(tmp_path / "who.csv", "a.nii.gz,A", "b.nii.gz,B", "c.nii.gz,C", "d,D"))
    assert "2 lines of the table given as --patients name no scan: c.nii.gz (line 3), d (line 4)" in inventory.remarks


@pytest.mark.parametrize("other", ["sub_a", "sub", "./sub/a.nii.gz", "sub\\a.nii.gz", "{raw}/sub/a.nii.gz"])
def test_a_scan_that_two_lines_name_has_one_patient(tmp_path, other):
    raw = tmp_path / "raw"
    nifti(raw / "sub" / "a.nii.gz")
    other = other.format(raw=raw)
    same = take_inventory(raw, table(tmp_path / "who.csv", "file,patient", "sub/a.nii.gz,A", f"{other},A"))
    assert [case.patient_id for case in same.cases] == ["A"] and not same.remarks
    with pytest.raises(ValueError, match="lines 2 and 3 both name 'sub/a.nii.gz'|line 3: .* listed under two patients"):
        take_inventory(raw, table(tmp_path / "who.csv", "file,patient", "sub/a.nii.gz,A", f"{other},B"))


def test_patients_of_the_table_that_are_written_in_several_ways_are_one_and_that_is_said(tmp_path):
    raw = tmp_path / "raw"
    for name in "abcd":
        nifti(raw / f"{name}.nii.gz")
    lines = ("a.nii.gz;0012", "b.nii.gz;12", "c.nii.gz; 1 2 ", "d.nii.gz;120")
    inventory = take_inventory(raw, table(tmp_path / "who.csv", *lines))
    found = {case.case_id: case.patient_id for case in inventory.cases}
    assert found["a"] == found["b"] == found["c"] != found["d"]
    assert any(
        "1 patients of the table" in remark and "(0012 and 1 2 and 12)" in remark for remark in inventory.remarks
    )


@pytest.mark.parametrize(("number", "more"), [(5, ""), (6, " and 1 more")])
def test_lines_that_name_no_scan_are_not_all_listed(number, more):
    lines = {f"{n}.nii": (n + 2, "P") for n in range(number)}
    (remark,) = PatientTable("who.csv", lines).remarks()
    listed = ", ".join(f"{n}.nii (line {n + 2})" for n in range(5))
    assert remark == f"{number} lines of the table given as --patients name no scan: {listed}{more}"


@pytest.mark.parametrize("line", ["b.nii.gz,", ",B", "b.nii.gz"])
def test_a_line_without_a_file_or_a_patient_is_named(tmp_path, line):
    nifti(tmp_path / "raw" / "a.nii.gz")
    with pytest.raises(ValueError, match="who.csv, line 2: expected a file and a patient"):
        take_inventory(tmp_path / "raw", table(tmp_path / "who.csv", "a.nii.gz,A", line))


def test_a_file_called_file_is_no_header(tmp_path):
    path = tmp_path / "who.csv"
    path.write_text("file,patient\nfile,patient\n")
    assert read_patient_table(path).lines == {"file": (2, "patient")}


def remarks_on(*signs):
    return " ".join(group_patients([{"file": str(number), **own} for number, own in enumerate(signs)]).remarks)


def test_one_patient_id_in_all_studies_is_said_but_not_in_one_study():
    own = {"patient": "P", "study": "1"}
    assert "all 2 studies bear one PatientID" in remarks_on(own, {"patient": "P", "study": "2"})
    assert "bear one PatientID" not in remarks_on(own, own)
    assert "bear one PatientID" not in remarks_on(own, {"patient": "Q", "study": "2"})


def test_an_id_that_reads_like_none_matters_where_there_are_several_studies():
    (unknown,) = {sign for sign in PLACEHOLDERS if sign == hashlib.sha256(b"unknown").hexdigest()[:12]}
    own = {"patient": unknown, "study": "1"}
    assert "reads like none" in remarks_on(own, {"patient": unknown, "study": "2"})
    assert "reads like none" not in remarks_on(own, own)


def test_of_one_scan_alone_nobody_needs_to_know_whose_it_is():
    assert remarks_on({}) == "" and "nothing tells whose 2 of the scans are" in remarks_on({}, {})


def test_a_line_with_a_comma_in_its_name_is_no_line_of_two_cells(tmp_path):
    nifti(tmp_path / "raw" / "a.nii.gz")
    with pytest.raises(ValueError, match="who.csv, line 1: expected two columns"):
        take_inventory(tmp_path / "raw", table(tmp_path / "who.csv", "a,b.nii.gz,A"))


def test_patient_ids_that_differ_in_leading_zeros_alone_are_one_patient_and_that_is_said(tmp_path):
    for name, patient in {"a": "0012", "b": "12", "c": "120", "d": "PAT007", "e": "pat7"}.items():
        scan(tmp_path / name, patient)
    found, remarks = patients(tmp_path)
    assert found["a"] == found["b"] and found["d"] == found["e"] and len(set(found.values())) == 3
    assert any(remark.startswith("2 patients have") and "leading zeros alone" in remark for remark in remarks)


def test_a_scan_named_for_another_subject_than_its_folder_joins_the_two_and_that_is_said(tmp_path):
    for name in ("sub-01/anat/sub-01_T1w", "sub-01/anat/sub-04_T1w", "sub-04/anat/sub-04_T1w", "sub-2/anat/sub-02_T1w"):
        nifti(tmp_path / f"{name}.nii.gz")
    found, remarks = patients(tmp_path)
    assert sorted(found.values()) == ["sub-01", "sub-01", "sub-01", "sub-02"]
    (said,) = [remark for remark in remarks if "another subject than their folder" in remark]
    assert said.startswith("1 scans") and "for sub-04, in the folder of sub-01" in said


def test_accents_of_a_table_may_be_written_as_a_mac_or_as_a_keyboard_writes_them(tmp_path):
    composed, parted = (unicodedata.normalize(form, "M\u00fcller") for form in ("NFC", "NFD"))
    assert composed != parted
    for on_disk, in_table in ((parted, composed), (composed, parted)):
        root = tmp_path / f"raw_{len(on_disk)}"
        nifti(root / on_disk / "T1.nii.gz")
        table = tmp_path / "who.csv"
        table.write_text(f"file,patient\n{in_table},7\n")
        inventory = take_inventory(root, Selection(patients=table))
        assert [case.patient_id for case in inventory.cases] == ["7"] and inventory.remarks == []


def test_a_spreadsheet_in_the_place_of_a_table_is_called_so(tmp_path):
    nifti(tmp_path / "raw" / "a.nii.gz")
    table = tmp_path / "who.xlsx"
    table.write_bytes(b"PK\3\4" + bytes(200))
    with pytest.raises(ValueError, match="who.xlsx: expected a text, got a file of a spreadsheet program"):
        take_inventory(tmp_path / "raw", Selection(patients=table))
