from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from medical_diffusion_components.data.segmentation_cases import (
    describe_cases,
    labelled_cases,
    labelled_subset,
    volumes_to_segment,
    with_pairs,
)

CASES = [
    {"case_id": f"{patient}_{side}", "patient_id": patient} for patient in "abcdefgh" for side in ("left", "right")
]


def patients(number: int | None, seed: int = 0, cases: list[dict] = CASES) -> set[str]:
    return {case["patient_id"] for case in labelled_subset(cases, number, seed)}


@pytest.mark.parametrize("seed", range(3))
def test_more_patients_contain_the_fewer(seed: int) -> None:
    chosen = [patients(number, seed) for number in range(1, 9)]
    assert [len(found) for found in chosen] == list(range(1, 9))
    assert all(fewer < more for fewer, more in pairwise(chosen))


def test_all_cases_of_a_chosen_patient_are_in_and_in_their_order() -> None:
    subset = labelled_subset(CASES, 3, 1)
    assert len(subset) == 6 and subset == [case for case in CASES if case in subset]
    assert labelled_subset(CASES, None, 1) == CASES


def test_seeds_choose_different_patients() -> None:
    assert len({frozenset(patients(2, seed)) for seed in range(20)}) > 5


def test_the_choice_does_not_depend_on_the_order_of_the_cases_nor_on_patients_of_later_places() -> None:
    assert patients(3) == patients(3, cases=CASES[::-1])
    last = patients(8) - patients(7)
    assert patients(3, cases=[case for case in CASES if case["patient_id"] not in last]) == patients(3)


@pytest.mark.parametrize("number", [0, -1, 9])
def test_a_number_that_cannot_be_is_refused(number: int) -> None:
    with pytest.raises(ValueError, match=rf"must be 1 to 8 \(patients of the training split\), got {number}"):
        labelled_subset(CASES, number)


def pairs_folder(path: Path, number: int, first: str = "pair") -> str:
    """A datalist of so many pairs to train on, whose files are not looked into here."""
    path.mkdir()
    listed = [
        {"image": f"{i}.nii", "label": f"{i}_seg.nii", "case_id": f"{first}_{i}", "patient_id": f"mask_{i}"}
        for i in range(number)
    ]
    for pair in listed:
        for key in ("image", "label"):
            (path / pair[key]).write_bytes(b"")
    (path / "dataset.json").write_text(json.dumps({"training": listed}))
    return str(path)


@pytest.mark.parametrize(("number", "share", "times"), [(40, 0.5, 2), (40, 0.8, 1), (3, 0.5, 1), (48, 0.25, 9)])
def test_cases_are_repeated_until_pairs_have_at_most_their_share(tmp_path, number, share, times) -> None:
    found = with_pairs(CASES, pairs_folder(tmp_path / "pairs", number), share)
    ids = [case["case_id"] for case in found]
    assert [ids.count(case["case_id"]) for case in CASES] == [times] * 16
    assert [id for id in ids if id.startswith("pair")] == sorted(f"pair_{i}" for i in range(number))
    assert number / len(found) <= share + 0.1


def test_without_pairs_cases_are_what_they_were() -> None:
    assert with_pairs(CASES, None) == CASES


def test_pairs_that_would_be_taken_for_cases_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected pairs with ids of their own, but pair_1 is a case"):
        with_pairs([{"case_id": "pair_1", "patient_id": "a"}], pairs_folder(tmp_path / "pairs", 3))
    with pytest.raises(ValueError, match=r"pairs_share must be in \(0, 1\), got 1"):
        with_pairs(CASES, str(tmp_path / "pairs"), 1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A datalist of three cases; their files are not looked into here."""
    listed = {}
    for split in ("training", "validation", "test"):
        for name in ("image", "label"):
            (tmp_path / f"{split}_{name}.nii.gz").write_bytes(f"{split} {name}".encode())
        files = {name: f"{split}_{name}.nii.gz" for name in ("image", "label")}
        listed[split] = [{**files, "case_id": split, "patient_id": split}]
    (tmp_path / "dataset.json").write_text(json.dumps({"name": "cohort", "description": "invented", **listed}))
    return tmp_path


def test_a_case_without_a_label_is_named(folder: Path) -> None:
    assert labelled_cases(folder, "training")[0]["label"] == str(folder / "training_label.nii.gz")
    listed = json.loads((folder / "dataset.json").read_text())
    del listed["training"][0]["label"]
    (folder / "dataset.json").write_text(json.dumps(listed))
    with pytest.raises(ValueError, match="1 of 1 training cases have no label, the first is training"):
        labelled_cases(folder, "training")


def test_the_note_depends_on_labels_and_on_which_cases_are_used(folder: Path) -> None:
    train, held_out = labelled_cases(folder, "training"), labelled_cases(folder, "validation")
    note = describe_cases(train, held_out, str(folder))
    assert note["data"] == "the user's dataset_dir" and note["notice"] is None
    assert note["cases"] == {"training": 1, "validation": 1} and note["patients"] == 1
    assert describe_cases(train, train, str(folder))["data_sha256"] != note["data_sha256"]
    twice = [{**train[0], "case_id": side} for side in ("left", "right")]
    counted = describe_cases(twice, held_out, str(folder))
    assert counted["cases"]["training"] == 2 and counted["patients"] == 1
    (folder / "training_label.nii.gz").write_bytes(b"drawn again")
    assert describe_cases(train, held_out, str(folder))["data_sha256"] != note["data_sha256"]
    assert str(folder) not in json.dumps(note)


def test_cases_of_an_annotation_server_are_known_by_having_no_id(folder: Path) -> None:
    served = [{key: case[key] for key in ("image", "label")} for case in labelled_cases(folder, "training")]
    note = describe_cases(served, served, None)
    assert note["data"] == "cases of an annotation server" and note["cases"] == {"training": 1, "validation": 1}
    assert note["patients"] == 1


def test_nothing_to_validate_with_is_an_error(folder: Path) -> None:
    with pytest.raises(ValueError, match="got 1 and 0"):
        describe_cases(labelled_cases(folder, "training"), [], None)


def test_volumes_to_segment_are_a_file_the_test_split_or_all_files_of_a_folder(folder: Path, tmp_path: Path) -> None:
    assert volumes_to_segment(folder / "test_image.nii.gz") == [
        {"image": str(folder / "test_image.nii.gz"), "case_id": "test_image"}
    ]
    assert volumes_to_segment(folder) == [{"image": str((folder / "test_image.nii.gz").resolve()), "case_id": "test"}]
    (folder / "dataset.json").unlink()
    (folder / ".hidden.nii.gz").write_bytes(b"")
    assert len(volumes_to_segment(folder)) == 6


def test_volumes_of_one_name_in_several_folders_are_told_apart(tmp_path: Path) -> None:
    for name in ("sub-01/T1.nii.gz", "sub-02/T1.nii.gz", "sub-02/T1.1.nii"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert {case["case_id"] for case in volumes_to_segment(tmp_path)} == {"sub-01_T1", "sub-02_T1", "sub-02_T1.1"}


def test_the_scale_that_preparation_fixed_goes_into_inference_and_into_the_note(folder: Path) -> None:
    content = json.loads((folder / "dataset.json").read_text())
    scale = {"limits_from": "window", "limits": [-1000.0, 400.0], "range": [-1.0, 1.0]}
    before = describe_cases(labelled_cases(folder, "training"), labelled_cases(folder, "validation"), str(folder))
    (folder / "dataset.json").write_text(json.dumps({**content, "decided": {"scale": scale}}))
    [case] = volumes_to_segment(folder)
    assert case["window"] == [-1000.0, 400.0] and case["intensity_range"] == [-1.0, 1.0]
    after = describe_cases(labelled_cases(folder, "training"), labelled_cases(folder, "validation"), str(folder))
    assert after["window"] == [-1000.0, 400.0] and "window" not in before
    assert after["data_sha256"] != before["data_sha256"], "or cached latents of another scale would be used"


def test_nothing_to_segment_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no NIfTI files"):
        volumes_to_segment(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no file or folder"):
        volumes_to_segment(tmp_path / "none")
    (tmp_path / "notes.txt").write_text("no volume")
    with pytest.raises(ValueError, match=r"notes\.txt: expected a NIfTI file"):
        volumes_to_segment(tmp_path / "notes.txt")


def test_the_ending_of_a_single_file_may_be_in_upper_case(tmp_path: Path) -> None:
    (tmp_path / "SCAN.NII.GZ").touch()
    assert volumes_to_segment(tmp_path / "SCAN.NII.GZ") == [{"image": str(tmp_path / "SCAN.NII.GZ"), "case_id": "SCAN"}]
