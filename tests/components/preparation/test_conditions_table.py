"""What is known of patients, from the user's table and from BIDS, beside the prepared cases."""

from concurrent.futures import ThreadPoolExecutor

import nibabel as nib
import numpy as np
import pytest

from medical_diffusion_components.data import load_cases
from medical_diffusion_components.data.splits import SPLITS
from medical_diffusion_components.preparation.bids import participant_conditions
from medical_diffusion_components.preparation.conditions_table import read_conditions_table
from medical_diffusion_components.preparation.preparation import Preparation
from medical_diffusion_components.preparation.steps.load_scan import LoadScand

RAS = np.eye(4)


def table(tmp_path, content, encoding="utf-8"):
    (tmp_path / "known.csv").write_text(content, encoding=encoding)
    return tmp_path / "known.csv"


@pytest.fixture
def raw(tmp_path):
    (tmp_path / "raw").mkdir()
    for number in range(3):
        voxels = np.random.default_rng(number).random((5, 4, 3), dtype=np.float32)
        nib.save(nib.Nifti1Image(voxels, RAS), tmp_path / "raw" / f"sub-{number}_T1w.nii.gz")
    return tmp_path / "raw"


def prepared(tmp_path, **options):
    Preparation(tmp_path / "raw", tmp_path / "out", [LoadScand("image")], ThreadPoolExecutor, **options).run()
    cases = [case for split in SPLITS for case in load_cases(tmp_path / "out", split)]
    return {case["patient_id"]: case.get("conditions") for case in cases}


def test_numbers_are_numbers_and_missing_values_are_left_out(tmp_path):
    path = table(tmp_path, "patient,age,sex\nP1,71.5,F\n\nP2,n/a,M\nP3,,\n", "utf-8-sig")  # with a byte order mark
    known = read_conditions_table(path)
    assert known.rows == {"P1": {"age": 71.5, "sex": "F"}, "P2": {"sex": "M"}, "P3": {}}
    assert known.of("case", "P1") == {"age": 71.5, "sex": "F"} and known.of("P1", "other") == {}
    untidy = read_conditions_table(table(tmp_path, "patient , age,sex\n P1 , 71.5 , N/A \n"))
    assert untidy.rows == {"P1": {"age": 71.5}}, "blanks around a cell, and N/A as spreadsheets write it"
    by_case = read_conditions_table(table(tmp_path, "age\tcase\n3\tc1\n"))
    assert by_case.of("c1", "P9") == {"age": 3.0}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"known.csv: expected a column case or a column patient"),
        ("age,sex\n1,F\n", r"expected a column case or a column patient.*\['age', 'sex'\]"),
        ("case,patient,age\nc,p,1\n", "expected a column case or a column patient"),
        ("case\nc\n", "and one for each condition"),
        ("case,age,age\nc,1,2\n", "each column once.*'age'"),
        ("case,age of scan\nc,1\n", "letters, digits and _; got 'age of scan'"),
        ("case,age\nc,1\nc,1\n", "line 3: case 'c' is listed twice"),
        ("case,age\nc,1,2\n", "line 2: expected 2 cells with a case, got 3"),
        ("case,age\n,1\n", "line 2: expected 2 cells with a case"),
        ("case,age\nc,NaN\n", "line 2, age: expected a finite number or text, got 'NaN'"),
        ("case,age\nc,-inf\n", "got '-inf'"),
    ],
)
def test_a_bad_table_is_refused_with_its_place(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read_conditions_table(table(tmp_path, content))


def test_participants_become_conditions():
    about = {"age": "70", "sex": "F", "group": "2"}
    assert participant_conditions(about) == {"age": 70.0, "sex": "F", "group": "2"}
    assert participant_conditions({"age": "89+", "sex": "M"}) == {"sex": "M"}
    assert participant_conditions({"age": "nan"}) == {} == participant_conditions({})


def test_prepared_cases_carry_what_the_tables_say(tmp_path, raw):
    (raw / "participants.tsv").write_text("participant_id\tage\tsex\nsub-0\t70\tF\nsub-1\t60\tM\n")
    assert prepared(tmp_path) == {"sub-0": {"age": 70.0, "sex": "F"}, "sub-1": {"age": 60.0, "sex": "M"}, "sub-2": None}
    own = table(tmp_path, "patient,age,score\nsub-1,61,2\nsub-2,50,\n")
    assert prepared(tmp_path, conditions_table=own) == {
        "sub-0": {"age": 70.0, "sex": "F"},
        "sub-1": {"age": 61.0, "sex": "M", "score": 2.0},
        "sub-2": {"age": 50.0},
    }


def test_an_unknown_patient_in_the_table_ends_preparation_before_it_works(tmp_path, raw):
    own = table(tmp_path, "patient,age\nsub-1,61\nsub-9,50\n")
    with pytest.raises(ValueError, match=r"known.csv: patient 'sub-9' is none of the 3 in raw_dir"):
        prepared(tmp_path, conditions_table=own)
    assert not (tmp_path / "out" / "images").exists()
