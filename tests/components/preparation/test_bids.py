"""What a name or a table of BIDS says, by name alone, without a scan."""

from __future__ import annotations

import pytest

from medical_diffusion_components.preparation.bids import (
    entities_of,
    is_derivative,
    keep_one_per_session,
    parse_select,
    read_participants,
    remark_on_values,
)


def test_folders_name_subject_and_session_alone_and_a_suffix_belongs_to_a_subject():
    found = entities_of("acq-fast/sub-01/ses-2/SUB-1_Run-3_T1w.nii.gz")
    assert (found.subject, found.session) == ("sub-1", "ses-2"), "the file's own name counts before its folders"
    assert found.values == {"sub": "1", "ses": "2", "run": "3", "suffix": "T1w"}
    assert entities_of("scan_T1w.nii.gz") == ("", "", {})


@pytest.mark.parametrize(
    ("inside", "roots", "left"),
    [
        ("derivatives/x.nii", ["."], True),
        ("code", ["."], False),  # a file of that name
        ("study/derivatives/x.nii", ["."], False),
        ("study/derivatives/x.nii", ["other", "study"], True),
    ],
)
def test_derivatives_lie_directly_below_a_root(inside, roots, left):
    assert is_derivative(inside, roots) is left


def test_runs_are_counted_as_numbers_and_scans_of_nobody_all_stay():
    runs = [f"sub-1_{name}T1w.nii" for name in ("run-10_", "run-9_", "acq-a_run-9_")]
    assert keep_one_per_session(runs) == {"sub-1_run-9_T1w.nii"}
    assert keep_one_per_session(["a/t1.nii", "b/t1.nii"]) == {"a/t1.nii", "b/t1.nii"}


def test_a_selection_may_be_a_text_or_a_dictionary():
    assert parse_select("suffix=T1w|T2w, acq = x") == {"suffix": {"T1w", "T2w"}, "acq": {"x"}}
    assert parse_select({"run": 1, "suffix": "T1w", "acq": ["x", 2]}) == {
        "run": {"1"},
        "suffix": {"T1w"},
        "acq": {"x", "2"},
    }
    for text in ("suffix", "=T1w", "suffix=", "suffix=T1w,"):
        with pytest.raises(ValueError, match=r"select must read entity=value.*got 'suf|got '=T1w'"):
            parse_select(text)


def test_participants_without_a_name_are_nobody_and_a_contradiction_has_its_line(tmp_path):
    table = tmp_path / "participants.tsv"
    table.write_text("participant_id\tage\n\t70\nsub-1\t60\n")
    assert read_participants([table]) == {"sub-1": {"age": "60"}}
    table.write_text("participant_id\tage\nsub-1\t60\nsub-1\t61\n")
    with pytest.raises(ValueError, match=r"participants\.tsv, line 3: a participant is listed twice"):
        read_participants([table])


@pytest.mark.parametrize(("age", "said"), [("0", ""), ("125", ""), ("126", "ages of nobody, such as 126")])
def test_nobody_is_older_than_125_years(age, said):
    remarks = remark_on_values({"sub-1": {"age": age}, "sub-2": {"age": "50"}})
    assert said in remarks[0] if said else remarks == []
