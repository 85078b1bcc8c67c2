"""Every file of a folder is of a case or left aside, and scans of one patient stay together."""

from __future__ import annotations

import os
import shutil

import nibabel as nib
import numpy as np
import pydicom
import pytest
from dicom_writing import stable_uid, write_series
from pydicom.filebase import DicomIO
from pydicom.filewriter import write_dataset
from pydicom.uid import ImplicitVRLittleEndian

from medical_diffusion_components.preparation.inventory import Selection, take_inventory

AFFINE = np.diag([1.0, 1, 2, 1])


def nifti(path, values=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(0).normal(size=(6, 5, 4)).astype(np.float32) if values is None else values
    nib.save(nib.Nifti1Image(voxels, AFFINE), path)
    return path


def dicom(folder, series="1.2.1", patient="P", study=None, number=4, **options):
    volume = np.random.default_rng(len(series)).integers(0, 99, (6, 5, number))
    study = study or stable_uid(patient, "study")
    return write_series(
        folder, volume, AFFINE, modality="MR", patient_id=patient, series_uid=series, study_uid=study, **options
    )


def take(root, *selection):
    inventory = take_inventory(root, Selection(*selection))
    assert inventory.num_seen == inventory.num_used + sum(inventory.num_aside.values())
    return inventory


def patients(inventory):
    return {case.case_id: case.patient_id for case in inventory.cases}


def test_a_series_in_several_folders_is_one_case_and_copies_of_slices_are_left_aside(tmp_path):
    paths = dicom(tmp_path / "P1" / "DIR1", number=8)
    (tmp_path / "P1" / "DIR2").mkdir()
    for path in paths[4:]:
        path.rename(tmp_path / "P1" / "DIR2" / path.name)
    shutil.copytree(tmp_path / "P1" / "DIR1", tmp_path / "backup")
    inventory = take(tmp_path)
    assert [case.scan.series_uid for case in inventory.cases] == ["1.2.1"]
    assert inventory.num_used == 8 and inventory.num_aside == {"copy of a slice": 4}
    assert any("lie in 2 folders" in remark for remark in inventory.remarks)


def test_a_copy_that_is_not_the_same_to_the_byte_is_not_left_aside_but_read_and_refused(tmp_path):
    dicom(tmp_path / "a")
    dicom(tmp_path / "b", patient="Q", study=stable_uid("P", "study"))
    assert take(tmp_path).num_used == 8


def test_one_series_uid_in_two_studies_is_two_cases(tmp_path):
    dicom(tmp_path / "a", patient="P")
    dicom(tmp_path / "b", patient="Q")
    assert len(take(tmp_path).cases) == 2


def test_slices_without_preamble_are_slices(tmp_path):
    for path in dicom(tmp_path / "a", transfer_syntax=ImplicitVRLittleEndian):
        dataset = pydicom.dcmread(path)
        with open(path, "wb") as file:
            stream = DicomIO(file)
            stream.is_little_endian = stream.is_implicit_VR = True
            write_dataset(stream, dataset)
        path.rename(path.with_suffix(""))
    assert take(tmp_path).kinds == {"DICOM image": 4}


@pytest.mark.parametrize(
    ("uid", "kind"),
    [
        ("1.2.840.10008.5.1.4.1.1.481.3", "RT Structure Set"),
        ("1.2.840.10008.5.1.4.1.1.88.22", "Enhanced SR"),
        ("1.2.840.10008.5.1.4.1.1.104.1", "Encapsulated PDF"),
        ("1.2.840.10008.5.1.4.1.1.66.4", "Segmentation"),
        ("1.2.840.10008.5.1.4.1.1.88.59", "Key Object Selection Document"),
        ("1.2.840.10008.5.1.4.1.1.11.1", "Grayscale Softcopy Presentation State"),
        ("1.2.840.10008.1.3.10", "DICOMDIR"),
    ],
)
def test_objects_that_are_no_scans_are_no_cases(tmp_path, uid, kind):
    dicom(tmp_path / "ct")
    for path in dicom(tmp_path / "other", series="1.2.2", number=1):
        dataset = pydicom.dcmread(path)
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = uid
        if kind != "Segmentation":
            del dataset.Rows, dataset.Columns, dataset.PixelData
        dataset.save_as(path)
    inventory = take(tmp_path)
    assert [case.case_id for case in inventory.cases] == ["ct"]
    assert inventory.num_aside == {f"DICOM without a scan ({kind})": 1}


def test_localisers_are_left_aside(tmp_path):
    dicom(tmp_path / "scan")
    dicom(tmp_path / "scout", series="1.2.2", number=2)
    inventory = take(tmp_path)
    assert len(inventory.cases) == 1 and list(inventory.num_aside.values()) == [2]


def test_links_are_followed_once_and_broken_ones_counted(tmp_path):
    root = tmp_path / "raw"
    dicom(tmp_path / "store" / "a", series="1.2.1")
    nifti(root / "b" / "t1.nii.gz")
    (root / "linked").symlink_to(tmp_path / "store" / "a")
    (root / "again").symlink_to(tmp_path / "store" / "a")
    (root / "b" / "up").symlink_to(root)
    (root / "gone").symlink_to(tmp_path / "nowhere")
    inventory = take(root)
    assert set(patients(inventory)) == {"again", "b_t1"}
    assert inventory.num_aside == {"link to a folder seen already": 2, "broken link": 1}


def test_formats_archives_and_other_files_are_named(tmp_path):
    for name in ("a.nii", "b.NII.GZ".lower()):
        nifti(tmp_path / name)
    (tmp_path / "b.nii.gz").rename(tmp_path / "b.NII.GZ")
    for name in ("c.nrrd", "d.MHA", "e.zip", "f.mgz", "notes.txt", ".hidden"):
        (tmp_path / name).write_bytes(b"content")
    nib.save(nib.Nifti1Pair(np.ones((6, 5, 4), np.float32), AFFINE), tmp_path / "g.img")
    inventory = take(tmp_path)
    assert set(patients(inventory)) == {"a", "b", "c", "d", "g"} and inventory.num_used == 6
    assert set(inventory.num_aside) == {
        "hidden",
        "archive, not opened",
        "format that is not read (.mgz)",
        "other file (text, table, picture)",
    }


def test_label_maps_are_told_by_their_voxels_and_not_by_their_names_alone(tmp_path):
    nifti(tmp_path / "a_t1.nii.gz")
    nifti(tmp_path / "mask_off_t1.nii.gz")  # an image all the same
    blocks = np.zeros((6, 5, 4), np.float32)
    blocks[2:5, 1:4] = 3
    nifti(tmp_path / "a_seg.nii.gz", blocks)
    nifti(tmp_path / "healthy-label.nii.gz", np.zeros((6, 5, 4), np.uint8))
    chances = np.random.default_rng(0).random((6, 5, 4), np.float32)
    nifti(tmp_path / "a_probseg.nii.gz", chances)
    nifti(tmp_path / "prob_lem_7.nii.gz", 900 * chances)  # an image all the same
    inventory = take(tmp_path)
    assert set(patients(inventory)) == {"a_t1", "mask_off_t1", "prob_lem_7"}
    assert inventory.num_aside == {"label map": 3}


def test_studies_without_a_patient_id_are_patients_and_that_is_said(tmp_path):
    for study in ("1.5", "1.6"):
        for series in ("1", "2"):
            dicom(tmp_path / study / series, series=f"{study}.{series}", patient="", study=study)
    inventory = take(tmp_path)
    assert len(set(patients(inventory).values())) == 2
    assert any("2 studies have no PatientID" in remark for remark in inventory.remarks)


def test_one_study_under_two_patient_ids_is_one_patient_and_that_is_said(tmp_path):
    dicom(tmp_path / "a", series="1.2.1", patient="P", study="1.5")
    dicom(tmp_path / "b", series="1.2.2", patient="P_corrected", study="1.5")
    dicom(tmp_path / "c", series="1.2.3", patient="Q", study="1.6")
    inventory = take(tmp_path)
    found = patients(inventory)
    assert found["a"] == found["b"] != found["c"]
    assert any("several PatientIDs" in remark for remark in inventory.remarks)


def test_a_conversion_beside_the_slices_is_of_their_patient(tmp_path):
    for name in ("P", "Q"):
        dicom(tmp_path / name, series=f"1.2.{len(name)}{ord(name)}", patient=name)
        nifti(tmp_path / name / "converted.nii.gz")
    found = patients(take(tmp_path))
    assert found["P"] == found["P_converted"] != found["Q"] == found["Q_converted"]


def test_bids_names_participants_and_tables_tell_patients(tmp_path):
    for name in ("sub-01_ses-1_T1w", "sub-01_ses-2_T1w", "sub-02_ses-1_T1w"):
        nifti(tmp_path / f"{name}.nii.gz")
    assert set(patients(take(tmp_path)).values()) == {"sub-01", "sub-02"}
    (tmp_path / "who.csv").write_text(
        "file,patient\nsub-01_ses-1_T1w.nii.gz,x\nsub-01_ses-2_T1w,x\nsub-02_ses-1_T1w,x\n"
    )
    inventory = take(tmp_path, None, tmp_path / "who.csv")
    assert set(patients(inventory).values()) == {"x"} and "the table given as --patients" in inventory.decided_by
    (tmp_path / "who.csv").write_text("file,patient\nsub-01_ses-1_T1w.nii.gz,x\n")
    with pytest.raises(ValueError, match="no line for 'sub-01_ses-2_T1w.nii.gz'"):
        take(tmp_path, None, tmp_path / "who.csv")


def test_a_participants_table_names_folders_that_have_no_sub_in_front(tmp_path):
    (tmp_path / "participants.tsv").write_text("participant_id\tage\tsex\tsite\nP1\t70\tF\tX\nP2\tn/a\tM\tX\n")
    for name in ("P1/t1", "P1/t2", "P2/t1"):
        nifti(tmp_path / f"{name}.nii.gz")
    inventory = take(tmp_path)
    assert set(patients(inventory).values()) == {"P1", "P2"}
    assert [case.about for case in inventory.cases] == [{"age": "70", "sex": "F"}] * 2 + [{"sex": "M"}]


def test_a_participants_table_that_writes_subjects_otherwise_is_said(tmp_path):
    for name in ("sub-01_T1w", "sub-02_T1w"):
        nifti(tmp_path / f"{name}.nii.gz")
    (tmp_path / "participants.tsv").write_text("participant_id\tage\nsub-01\t70\n02\t50\n")
    assert not any("participants.tsv" in remark for remark in take(tmp_path).remarks)
    (tmp_path / "participants.tsv").write_text("participant_id\tage\nsub-1\t70\nsub-02\t50\n")
    (remark,) = take(tmp_path).remarks
    assert "does not list 1 of the subjects, the first is sub-01 (it lists sub-1)" in remark
    (tmp_path / "participants.tsv").write_text("participant_id\tage\nsub-020\t60\nsub-001\t70\nsub-002\t50\n")
    message = (
        "participants.tsv lists none of the 2 subjects: it has sub-001, and the files sub-01. Write the same names"
    )
    with pytest.raises(ValueError, match=message):
        take(tmp_path)
    (tmp_path / "participants.tsv").write_text("participant_id\nsub-001\nsub-002\n")  # which says nothing of them
    assert len(take(tmp_path).cases) == 2


def test_a_bids_data_set_gives_one_scan_a_session(tmp_path):
    for name in ("T1w", "run-2_T1w", "run-1_T1w", "acq-fast_run-1_T1w", "T2w"):
        nifti(tmp_path / "sub-01" / "ses-1" / "anat" / f"sub-01_ses-1_{name}.nii.gz")
    nifti(tmp_path / "sub-01" / "ses-2" / "anat" / "sub-01_ses-2_run-02_T1w.nii.gz")
    nifti(tmp_path / "sub-02" / "anat" / "sub-02_T1w.nii.gz")
    nifti(tmp_path / "derivatives" / "tool" / "sub-01" / "anat" / "sub-01_T1w.nii.gz")
    everything = take(tmp_path)
    assert len(everything.cases) == 7 and any("--select suffix=T1w" in remark for remark in everything.remarks)
    inventory = take(tmp_path, None, None, "suffix=T1w")
    assert {case.case_id.rsplit("anat_")[1] for case in inventory.cases} == {
        "sub-01_ses-1_T1w",
        "sub-01_ses-2_run-02_T1w",
        "sub-02_T1w",
    }
    assert inventory.num_aside["BIDS derivatives or source data"] == 1
    with pytest.raises(ValueError, match=r"the suffixes there are \['T1w', 'T2w'\]"):
        take(tmp_path, None, None, "suffix=bold")


@pytest.mark.parametrize(
    ("content", "left"), [(b'{"DatasetType": "derivative"}', 2), (b"[]", 0), (b"\xff", 0), (b"{}", 0)]
)
def test_what_its_description_calls_derivatives_is_left_aside_wherever_it_lies(tmp_path, content, left):
    nifti(tmp_path / "bids" / "sub-01" / "anat" / "sub-01_T1w.nii.gz")
    nifti(tmp_path / "fmriprep" / "sub-01" / "anat" / "sub-01_desc-preproc_T1w.nii.gz")
    (tmp_path / "fmriprep" / "dataset_description.json").write_bytes(content)
    inventory = take(tmp_path)
    assert inventory.num_aside.get("BIDS derivatives or source data", 0) == left
    assert len(take(tmp_path / "fmriprep").cases) == 1, "whoever names the folder wants it"


@pytest.mark.parametrize(
    ("word", "reason"),
    [("LOCALIZER", "localiser, by its image type"), ("MOSAIC", "mosaic (all slices in one picture): convert it")],
)
@pytest.mark.parametrize("number", [1, 9])
def test_series_that_call_themselves_no_volume_are_left_aside(tmp_path, word, reason, number):
    def adjust(dataset, _):
        dataset.ImageType = ["ORIGINAL", "PRIMARY", word]

    dicom(tmp_path / "a", series="1.2.1")
    dicom(tmp_path / "b", series="1.2.2", number=number, adjust=adjust)
    inventory = take(tmp_path)
    assert [case.case_id for case in inventory.cases] == ["a"]
    ((left, count),) = inventory.num_aside.items()
    assert left.startswith(reason) and count == number


def test_nifti_under_another_name_is_left_aside_as_such(tmp_path):
    nifti(tmp_path / "good.nii.gz")
    for name in ("a.nii.gz", "b.nii.gz", "c.nii"):
        nifti(tmp_path / name)
    (tmp_path / "a.nii.gz").rename(tmp_path / "a.nii.gz (1)")
    (tmp_path / "b.nii.gz").rename(tmp_path / "b.gz")
    (tmp_path / "c.nii").rename(tmp_path / "c")
    (tmp_path / "d.gz").write_bytes(b"\x1f\x8bno")
    assert take(tmp_path).num_aside == {
        "NIfTI by its content, not by its name: rename it to .nii or .nii.gz": 3,
        "archive, not opened": 1,
    }


@pytest.mark.parametrize("pair", [("M\u00fcller", "M\u00f6ller"), ("T1", "t1"), ("x/1", "x_1"), ("a b", "a\nb")])
def test_case_ids_keep_what_tells_names_apart_on_any_disk(tmp_path, pair):
    for name in pair:
        nifti(tmp_path / f"{name}.nii.gz")
    first, second = (case.case_id for case in take(tmp_path).cases)
    assert first.lower() != second.lower()
    assert (first + second).isascii() and (first + second).isprintable() and "/" not in first + second


def test_names_that_are_no_text_or_too_long_become_case_ids(tmp_path):
    raw = tmp_path / "raw"
    nifti(raw / "q.nii.gz")
    (raw / "q.nii.gz").rename(raw / os.fsdecode(b"\xe4\xf6.nii.gz"))
    nifti(raw / ("x" * 140) / ("y" * 140 + ".nii.gz"))
    ids = [case.case_id for case in take(raw).cases]
    assert all(name.isascii() and len(name) <= 150 for name in ids)


def test_pipes_are_counted_and_not_waited_for(tmp_path):
    nifti(tmp_path / "a.nii.gz")
    os.mkfifo(tmp_path / "b.nii.gz")
    inventory = take_inventory(tmp_path)
    assert (inventory.num_seen, inventory.num_used) == (2, 1)
    assert inventory.aside["folder that cannot be listed, or file that cannot be looked at"] == ["b.nii.gz"]


def test_links_that_go_in_circles_end(tmp_path):
    nifti(tmp_path / "p" / "a.nii.gz")
    (tmp_path / "p" / "loop").symlink_to(tmp_path)
    (tmp_path / "s").symlink_to(tmp_path / "t")
    (tmp_path / "t").symlink_to(tmp_path / "s")
    inventory = take(tmp_path)
    assert [case.case_id for case in inventory.cases] == ["p_a"]
    assert inventory.num_aside == {"broken link": 2, "link to a folder seen already": 1}


@pytest.mark.parametrize("ending", [".part", ".crdownload", ".PARTIAL", ".icloud"])
def test_an_unfinished_download_is_no_scan_to_rename(tmp_path, ending):
    nifti(tmp_path / "a.nii.gz")
    (tmp_path / f"b.nii.gz{ending}").write_bytes((tmp_path / "a.nii.gz").read_bytes()[:400])
    assert take_inventory(tmp_path).num_aside == {"unfinished download": 1}


def test_scans_that_are_named_like_computed_maps_are_remarked_on(tmp_path):
    for name in ("a_T1", "a_ADC", "b_fa", "Scout", "adcock_1", "sub-1_part-phase_T1w"):
        nifti(tmp_path / f"{name}.nii.gz")
    remarks = [remark for remark in take_inventory(tmp_path).remarks if "named like computed maps" in remark]
    assert (
        len(remarks) == 1 and remarks[0].startswith("4 scans are named like computed maps") and "a_T1" not in remarks[0]
    )


def test_a_folder_of_maps_alone_is_what_somebody_wants(tmp_path):
    for name in ("a_ADC", "b_ADC"):
        nifti(tmp_path / f"{name}.nii.gz")
    assert not any("named like computed maps" in remark for remark in take_inventory(tmp_path).remarks)


def test_a_header_without_its_voxels_is_called_so(tmp_path):
    nib.save(
        nib.Nifti1Pair(np.random.default_rng(0).normal(size=(6, 5, 4)).astype(np.float32), AFFINE), tmp_path / "a.hdr"
    )
    (tmp_path / "a.img").unlink()
    nifti(tmp_path / "b.nii.gz")
    (tmp_path / "panorama.hdr").write_bytes(b"#?RADIANCE")
    assert take(tmp_path).num_aside == {
        "header whose voxels (.img) are not there": 1,
        "other file (text, table, picture)": 1,
    }
