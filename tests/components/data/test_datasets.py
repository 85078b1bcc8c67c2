"""Which cases a folder gives, and what is said when it gives none."""

import json

import nibabel as nib
import numpy as np
import pytest
from folders_of_cases import rewrite, write_nifti

from medical_diffusion_components.data.datasets import (
    load_cases,
    nifti_files,
)
from medical_diffusion_components.data.splits import SPLITS, split_patients


def listed(folder, split):
    return json.loads((folder / "dataset.json").read_text())[split]


def test_a_plain_folder_gives_every_visible_volume_once(plain):
    cases = [case for split in SPLITS for case in load_cases(plain, split)]
    expected = [f"case{i}" for i in range(6)] + ["site.1_a", "site.1_deep_b", "site.2_a"]
    assert sorted(case["case_id"] for case in cases) == expected
    assert {case["case_id"]: case["image"] for case in cases}["site.1_deep_b"] == str(
        plain / "site.1" / "deep" / "b.nii.gz"
    )


def test_a_plain_folder_is_split_by_the_rule_for_patients(plain):
    found = {case["patient_id"]: split for split in SPLITS for case in load_cases(plain, split)}
    assert found == split_patients(found)


def test_cases_are_sorted_and_the_same_each_time(plain):
    names = [case["case_id"] for case in load_cases(plain, "training")]
    assert names == sorted(names) and load_cases(plain, "training") == load_cases(str(plain) + "/", "training")


def test_two_files_of_one_case_id_are_refused(plain):
    write_nifti(plain / "site.1_a.nii.gz")
    with pytest.raises(ValueError, match=r"both be case site\.1_a"):
        load_cases(plain, "training")


def test_a_datalist_gives_absolute_paths_and_its_own_ids(prepared):
    cases = load_cases(prepared, "training")
    assert [case["case_id"] for case in cases] == ["case0", "case1"]
    assert cases[1] == {
        "image": str(prepared / "case1" / "image.nii.gz"),
        "label": str(prepared / "case1" / "label.nii.gz"),
        "case_id": "case1",
        "patient_id": "a",
    }


def test_a_datalist_of_other_origin_gets_ids_from_its_files(tmp_path):
    names = {"training": "imagesTr/knee_1", "validation": "imagesTr/knee_2", "test": "imagesTs/knee_3"}
    for name in names.values():
        write_nifti(tmp_path / f"{name}.nii.gz")
    entries = {split: [{"image": f"./{name}.nii.gz"}] for split, name in names.items()}
    rewrite(tmp_path, **{**entries, "test": ["./imagesTs/knee_3.nii.gz"]})
    assert load_cases(tmp_path, "training")[0]["case_id"] == "imagesTr_knee_1"
    assert load_cases(tmp_path, "test")[0]["patient_id"] == "imagesTs_knee_3"


def test_a_folder_that_is_not_there_is_no_reason_to_take_another(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist: check dataset_dir"):
        load_cases(tmp_path / "nowhere", "training")


def test_a_file_is_not_a_folder(plain):
    with pytest.raises(NotADirectoryError, match=r"case0\.nii\.gz is a file"):
        load_cases(plain / "case0.nii.gz", "training")


def test_a_folder_without_volumes_is_refused(tmp_path):
    (tmp_path / "scan.dcm").write_text("")
    with pytest.raises(FileNotFoundError, match=r"no NIfTI files .* `prepare`"):
        load_cases(tmp_path, "training")


def test_two_volumes_are_too_few_to_split(tmp_path):
    for name in "ab":
        write_nifti(tmp_path / f"{name}.nii.gz")
    with pytest.raises(ValueError, match=r"holds 2 volume\(s\) of 2 subject\(s\): at least 3"):
        load_cases(tmp_path, "test")


def test_an_unknown_split_is_refused(prepared):
    with pytest.raises(ValueError, match="training, validation, test; got 'train'"):
        load_cases(prepared, "train")


@pytest.mark.parametrize("content", [{"test": []}, {"test": None}])
def test_a_split_without_cases_is_refused(prepared, content):
    rewrite(prepared, **content)
    with pytest.raises(ValueError, match="'test'"):
        load_cases(prepared, "test")


def test_a_patient_in_two_splits_is_refused_whichever_is_asked_for(prepared):
    rewrite(prepared, test=[{**listed(prepared, "test")[0], "patient_id": "a"}])
    for split in SPLITS:
        with pytest.raises(ValueError, match="lists patient a under 'training' and under 'test'"):
            load_cases(prepared, split)


@pytest.mark.parametrize("patient", ["0A", "a ", "A"])
def test_a_patient_who_is_written_almost_the_same_in_two_splits_is_refused(prepared, patient):
    rewrite(prepared, training=[{**listed(prepared, "training")[0], "patient_id": "a" if patient != "0A" else "00a"}])
    rewrite(prepared, test=[{**listed(prepared, "test")[0], "patient_id": patient}])
    with pytest.raises(ValueError, match=f"under 'training' and patient {patient}, which is written almost the same"):
        load_cases(prepared, "training")


def test_a_file_in_two_splits_is_refused_whatever_its_cases_are_called(prepared):
    again = listed(prepared, "training")[0]["image"]
    rewrite(prepared, test=[{"image": f"./{again}", "case_id": "new", "patient_id": "new"}])
    with pytest.raises(ValueError, match="as case case1 under 'training' and as case new under 'test'"):
        load_cases(prepared, "training")


def test_sessions_of_a_subject_of_a_plain_folder_are_in_one_split(tmp_path):
    for subject in range(12):
        for session in "ab":
            write_nifti(
                tmp_path / f"sub-{subject:02}" / f"ses-{session}" / f"sub-{subject:02}_ses-{session}_T1w.nii.gz"
            )
    split_of = {
        case["case_id"]: (split, case["patient_id"]) for split in SPLITS for case in load_cases(tmp_path, split)
    }
    assert len(split_of) == 24 and len({patient for _, patient in split_of.values()}) == 12
    for subject in range(12):
        assert len({place for case_id, place in split_of.items() if case_id.startswith(f"sub-{subject:02}_")}) == 1


def test_sessions_of_a_subject_in_two_splits_of_a_datalist_without_patients_are_refused(prepared):
    entries = {}
    for split, name in zip(SPLITS, ("sub-1_ses-1", "sub-2", "sub-01_ses-2")):
        write_nifti(prepared / f"{name}.nii.gz")
        entries[split] = [f"{name}.nii.gz"]
    rewrite(prepared, **entries)
    with pytest.raises(ValueError, match="lists patient sub-1 under 'training' and under 'test'"):
        load_cases(prepared, "training")


def test_two_subjects_are_too_few_to_split_however_many_volumes_there_are(tmp_path):
    for name in ("sub-1_run-1", "sub-1_run-2", "sub-2_run-1"):
        write_nifti(tmp_path / f"{name}.nii.gz")
    with pytest.raises(ValueError, match=r"holds 3 volume\(s\) of 2 subject\(s\): at least 3"):
        load_cases(tmp_path, "test")


def test_a_case_listed_twice_is_refused(prepared):
    rewrite(prepared, training=listed(prepared, "training") * 2)
    with pytest.raises(ValueError, match="case1 twice"):
        load_cases(prepared, "validation")


@pytest.mark.parametrize("name", ["image", "label"])
def test_missing_files_are_named_and_counted(prepared, name):
    (prepared / "case3" / f"{name}.nii.gz").unlink()
    with pytest.raises(FileNotFoundError, match=rf"1 file\(s\) under 'test' .*case3/{name}\.nii\.gz"):
        load_cases(prepared, "test")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"training": [', "is not valid JSON"),
        ("[1, 2]", "must hold a JSON object"),
        ('{"training": {"image": "a.nii"}}', "must be a list of cases, got dict"),
        ('{"training": [{"label": "a.nii"}]}', 'needs "image"'),
        ('{"training": [{"image": ["a.nii", "b.nii"]}]}', 'needs "image"'),
        ('{"training": [{"image": ""}]}', 'needs "image"'),
        *(
            (f'{{"training": [{{"image": "a.nii", "label": {label}}}]}}', 'needs "label": .*or no "label" at all')
            for label in ("null", '""', "3", '["b.nii"]')
        ),
        *(
            (
                f'{{"training": [{{"image": "a.nii", "{key}": {id}}}]}}',
                f"'{key}' to be text or a whole number.*a.nii",
            )
            for key in ("case_id", "patient_id")
            for id in ("null", '" "', "NaN", "7.0", '["a"]', "true")
        ),
    ],
)
def test_a_broken_datalist_is_named(prepared, text, message):
    (prepared / "dataset.json").write_text(text)
    with pytest.raises(ValueError, match=rf"dataset\.json.*{message}"):
        load_cases(prepared, "training")


@pytest.mark.parametrize(("image", "label"), [("case0", "case1"), ("case1", "case1")])
def test_a_file_that_is_an_image_here_and_a_label_there_is_refused(prepared, image, label):
    first, *others = listed(prepared, "training")
    swapped = {**first, "image": f"{image}/label.nii.gz", "label": f"{label}/label.nii.gz"}
    rewrite(prepared, training=[swapped, *others])
    with pytest.raises(
        ValueError, match=r"lists \S*label\.nii\.gz as image and label of case case1 \(patient a\) and of case"
    ):
        load_cases(prepared, "training")


def test_a_label_of_two_patients_is_refused_and_of_one_is_not(prepared):
    a, b = listed(prepared, "training")
    rewrite(prepared, training=[a, {**b, "label": f"./{a['label']}"}])
    assert len(load_cases(prepared, "training")) == 2, "two images of one patient, such as T1 and T2, may share it"
    rewrite(prepared, test=[{**case, "label": a["label"]} for case in listed(prepared, "test")[:1]])
    with pytest.raises(
        ValueError, match=r"as label and label of case case1 \(patient a\) and of case case3 \(patient c\)"
    ):
        load_cases(prepared, "training")


@pytest.mark.parametrize("how", ["again", "link"])
def test_a_volume_that_is_listed_twice_is_refused_whatever_its_cases_are_called(prepared, how):
    case, *others = listed(prepared, "training")
    (prepared / "link.nii.gz").symlink_to(prepared / case["image"])
    again = {**case, "image": case["image"] if how == "again" else "link.nii.gz", "case_id": "again"}
    rewrite(prepared, training=[case, *others, again])
    with pytest.raises(ValueError, match="twice, as case case1 of patient a and case again of patient a"):
        load_cases(prepared, "training")
    rewrite(prepared, training=[case, *others, {**again, "label": "case2/label.nii.gz"}], validation=[])
    assert len(load_cases(prepared, "training")) == 3, "two readers drew on it"
    rewrite(prepared, training=[case, *others, {**again, "patient_id": "other", "label": "case2/label.nii.gz"}])
    with pytest.raises(ValueError, match="and case again of patient other"):
        load_cases(prepared, "training")


def test_a_link_to_a_volume_of_another_split_is_that_volume(prepared):
    (prepared / "link.nii.gz").symlink_to(prepared / "case1" / "image.nii.gz")
    rewrite(prepared, test=["link.nii.gz"])
    with pytest.raises(ValueError, match=r"as case case1 under 'training' and as case link under 'test'"):
        load_cases(prepared, "training")


def test_a_split_may_list_paths_alone_and_one_that_is_missing_is_told_what_there_is(prepared):
    rewrite(prepared, training=[case["image"] for case in listed(prepared, "training")])
    assert [case["case_id"] for case in load_cases(prepared, "training")] == ["case0_image", "case1_image"]
    (prepared / "dataset.json").write_text(json.dumps({"training": ["case0/image.nii.gz"], "folds": [], "name": "x"}))
    with pytest.raises(ValueError, match="no cases under 'validation'.*test, and has 'training', 'folds'"):
        load_cases(prepared, "validation")


def test_a_datalist_that_was_saved_on_windows_is_read(prepared):
    before, text = load_cases(prepared, "training"), (prepared / "dataset.json").read_text()
    for encoding in ("utf-8-sig", "utf-16"):
        (prepared / "dataset.json").write_text(text, encoding)
        assert load_cases(prepared, "training") == before


def test_what_is_left_out_of_a_folder_is_named_in_a_warning(plain, caplog):
    assert len(nifti_files(plain)) == 9 and not caplog.records
    for name in ("more.NRRD", "slice.dcm", "slice2.IMA"):
        (plain / name).write_bytes(b"")
    (plain / "site.1" / "gone.nii.gz").symlink_to(plain / "nowhere.nii.gz")
    assert len(nifti_files(plain)) == 9
    assert "3 images that are not NIfTI (prepare reads more formats) in" in caplog.text and "more.NRRD" in caplog.text
    assert "1 links that point nowhere in" in caplog.text and "gone.nii.gz" in caplog.text
    caplog.clear()
    assert nifti_files(plain / "not there yet") == [] and not caplog.records


def test_a_plain_folder_leaves_label_maps_out_with_a_warning_and_follows_links(tmp_path, caplog):
    rng = np.random.default_rng(0)
    root = tmp_path / "set"
    for number in range(4):
        place = tmp_path / "store" / f"p{number}" if number == 3 else root / f"p{number}"
        place.mkdir(parents=True)
        nib.save(nib.Nifti1Image(rng.normal(size=(6, 5, 4)).astype(np.float32), np.eye(4)), place / "t1.nii.gz")
    (root / "p3").symlink_to(tmp_path / "store" / "p3")
    label = np.zeros((6, 5, 4), np.uint8)
    label[1:4, 1:4] = 2
    nib.save(nib.Nifti1Image(label, np.eye(4)), root / "p0" / "t1_seg.nii.gz")
    (root / "p1" / "t1.nii.gz").rename(root / "p1" / "t1.NII.GZ")
    names = {case["case_id"] for split in ("training", "validation", "test") for case in load_cases(root, split)}
    assert names == {"p0_t1", "p1_t1", "p2_t1", "p3_t1"}
    (said,) = caplog.messages  # once, however often the folder is listed
    assert said == f"1 label maps in {root} are left out, the first is t1_seg.nii.gz"
