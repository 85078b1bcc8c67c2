"""What a volume is asked for, what is drawn for it, and what the weights' note may say of patients."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from medical_diffusion_components.audit.strata import stratum_of
from medical_diffusion_components.data.condition_requests import RequestedConditions, condition_strata
from medical_diffusion_components.data.conditions import Conditions

CONDITIONS = Conditions({"age": {"range": [0, 80], "unit": "years"}, "sex": {"values": ["F", "M"]}})


def case(number: int, patient: int, **conditions: Any) -> dict[str, Any]:
    return {"case_id": f"c{number}", "patient_id": f"p{patient}", "conditions": conditions}


def people(*rows: tuple[float | None, str | None, int]) -> list[dict[str, Any]]:
    """Rows of age, sex, and how many patients have them."""
    everyone = [(age, sex) for age, sex, count in rows for _ in range(count)]
    return [case(number, number, age=age, sex=sex) for number, (age, sex) in enumerate(everyone)]


def strata(*rows: tuple[float | None, str | None, int], least: int = 5) -> list[dict[str, Any]]:
    return condition_strata(CONDITIONS, people(*rows), least)["condition_strata"]


# --- the note ---


def test_strata_count_patients_in_the_finest_bins() -> None:
    found = strata((5.0, "F", 6), (80.0, "M", 7), (10.0, "F", 5))
    assert sorted((json.dumps(stratum["stratum"]), stratum["patients"]) for stratum in found) == [
        ('{"age": [0.0, 10.0], "sex": "F"}', 6),
        ('{"age": [10.0, 20.0], "sex": "F"}', 5),
        ('{"age": [70.0, 80.0], "sex": "M"}', 7),
    ]


def test_bins_become_wider_until_few_patients_are_alone() -> None:
    found = strata((5.0, "F", 3), (15.0, "F", 3), (75.0, "M", 5))
    assert {"stratum": {"age": [0.0, 20.0], "sex": "F"}, "patients": 6} in found and len(found) == 2


@pytest.mark.parametrize(("together", "width"), [(9, 10.0), (8, 20.0)])
def test_nine_of_ten_patients_must_be_counted(together: int, width: float) -> None:
    """Of ten patients ``together`` share a bin of ten years; with eight of them, the bins become wider."""
    [found] = strata((5.0, "F", together), (15.0, "F", 10 - together))
    assert found["stratum"]["age"] == [0.0, width]


def test_rare_combinations_are_not_in_the_note_at_all() -> None:
    found = strata((5.0, "F", 96), (45.0, "M", 4))
    assert found == [{"stratum": {"age": [0.0, 10.0], "sex": "F"}, "patients": 96}]
    assert "M" not in json.dumps(found)
    assert strata((5.0, "F", 4)) == []


def test_a_patient_with_many_volumes_counts_once() -> None:
    cases = [case(number, number % 5, age=5, sex="F") for number in range(50)]
    [found] = condition_strata(CONDITIONS, cases, 5)["condition_strata"]
    assert found["patients"] == 5
    assert condition_strata(CONDITIONS, cases, 6)["condition_strata"] == []


def test_missing_values_are_a_stratum_of_their_own() -> None:
    found = strata((None, "F", 5), (5.0, None, 5))
    assert {"stratum": {"age": None, "sex": "F"}, "patients": 5} in found and len(found) == 2


def test_a_changed_value_changes_the_hash_and_without_conditions_there_is_no_note() -> None:
    cases = people((5.0, "F", 6))
    first = condition_strata(CONDITIONS, cases)["conditions_sha256"]
    assert condition_strata(CONDITIONS, cases[::-1])["conditions_sha256"] == first
    cases[0]["conditions"]["age"] = 6.0
    assert condition_strata(CONDITIONS, cases)["conditions_sha256"] != first
    assert condition_strata(Conditions(), cases) == {}
    with pytest.raises(ValueError, match="min_patients_in_note to be at least 1, got 0"):
        condition_strata(CONDITIONS, cases, 0)


# --- in which combination a volume is ---


@pytest.mark.parametrize(("values", "expected"), [
    ({"age": 5, "sex": "F"}, ({"age": [0.0, 20.0], "sex": "F"}, 6)),
    ({"age": 20, "sex": "F"}, ({"age": [20.0, 40.0], "sex": "F"}, 0)),
    ({"age": 80, "sex": "M"}, ({"age": [60.0, 80.0], "sex": "M"}, 5)),
    ({"age": 80.5, "sex": "M"}, ({"age": "above 80", "sex": "M"}, 0)),
    ({"age": -0.0001, "sex": "F"}, ({"age": [0.0, 20.0], "sex": "F"}, 6)),
    ({"age": -1, "sex": "F"}, ({"age": "below 0", "sex": "F"}, 0)),
    ({"age": None, "sex": "M"}, ({"age": None, "sex": "M"}, 5)),
    ({"age": None, "sex": None}, ({"age": None, "sex": None}, 11)),
    ({"age": 70, "sex": None}, ({"age": [60.0, 80.0], "sex": None}, 5)),
])  # fmt: skip
def test_a_volume_is_in_the_bins_of_the_note(values: dict, expected: tuple) -> None:
    """The note cuts the range into four here, see above; ends belong to the bin above, the last one has both."""
    counted = strata((5.0, "F", 3), (15.0, "F", 3), (75.0, "M", 5))
    assert stratum_of(CONDITIONS, counted, values) == expected


def test_without_a_counted_patient_the_range_is_one_bin_and_missing_values_are_no_bin() -> None:
    assert stratum_of(CONDITIONS, [], {"age": 5, "sex": "F"}) == ({"age": [0.0, 80.0], "sex": "F"}, 0)
    counted = strata((None, "F", 5), (5.0, "F", 1))[:1]
    assert counted == [{"stratum": {"age": None, "sex": "F"}, "patients": 5}]
    assert stratum_of(CONDITIONS, counted, {"age": 5, "sex": "F"}) == ({"age": [0.0, 80.0], "sex": "F"}, 0)
    assert stratum_of(CONDITIONS, counted, {"age": None, "sex": "F"})[1] == 5


# --- draws ---

STRATA = strata((5.0, "F", 30), (75.0, "F", 10), (75.0, "M", 60))


def drawn(request: dict | None = None, count: int = 600) -> list[dict[str, Any]]:
    requested = RequestedConditions(CONDITIONS, request, STRATA)
    return [CONDITIONS.decode(requested(seed)) for seed in range(count)]


def test_what_is_left_out_is_drawn_jointly_in_the_patients_proportions() -> None:
    found = drawn()
    counts = Counter((values["age"] < 40, values["sex"]) for values in found)
    assert counts.keys() == {(True, "F"), (False, "F"), (False, "M")}  # no young men, as among the patients
    for key, share in (((True, "F"), 0.3), ((False, "F"), 0.1), ((False, "M"), 0.6)):
        assert abs(counts[key] / len(found) - share) < 4 * math.sqrt(share * (1 - share) / len(found))
    young = [values["age"] for values in found if values["age"] < 40]
    assert 0 <= min(young) < 1 and 9 < max(young) <= 10 and len(set(young)) == len(young)  # anywhere in the bin


def test_what_is_drawn_agrees_with_what_is_given() -> None:
    assert all(values["sex"] == "F" and values["age"] == 5 for values in drawn({"age": 5}, 50))
    women = drawn({"sex": "F"})
    assert abs(sum(values["age"] < 40 for values in women) / len(women) - 0.75) < 0.08
    assert all(values["age"] is None for values in drawn({"age": None}, 50))


def test_a_draw_follows_from_the_seed_alone() -> None:
    one, other = RequestedConditions(CONDITIONS, None, STRATA), RequestedConditions(CONDITIONS, None, STRATA, seed=7)
    assert one(9).tolist() == other(9).tolist() == one(9).tolist() != one(10).tolist()


def test_what_nobody_is_counted_for_cannot_be_drawn() -> None:
    with pytest.raises(ValueError, match=re.escape("agrees with {'age': 30}, so the rest cannot be drawn")):
        RequestedConditions(CONDITIONS, {"age": 30}, STRATA)(0)
    with pytest.raises(ValueError, match="give all of age, sex"):
        RequestedConditions(CONDITIONS)(0)


@pytest.mark.parametrize(("request_", "patients"), [
    ({"age": 5, "sex": "F"}, 30),
    ({"age": 75, "sex": "M"}, 60),
    ({"age": 80, "sex": "M"}, 60),
    ({"age": 70, "sex": "M"}, 60),
    ({"age": 5, "sex": "M"}, 0),
    ({"age": 75, "sex": None}, 70),
])  # fmt: skip
def test_combinations_of_few_patients_are_refused(request_: dict, patients: int) -> None:
    def requested(least: int) -> RequestedConditions:
        return RequestedConditions(CONDITIONS, request_, STRATA, min_patients=least)

    requested(patients)(0)
    with pytest.raises(ValueError, match=f"at least {patients + 1} training patients have .* has {patients} in"):
        requested(patients + 1)(0)


def test_a_row_of_few_patients_is_refused_before_the_first_volume(tmp_path: Path) -> None:
    path = table(tmp_path, "sex,age\nM,75\nM,5\n")
    with pytest.raises(
        ValueError, match="conditions of volume 1: expected a combination .* has 0 in the weights' note"
    ):
        RequestedConditions(CONDITIONS, path, STRATA, num_volumes=2, min_patients=1)


# --- requests ---


def table(folder: Path, text: str, name: str = "asked.csv") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_rows_of_a_table_are_the_volumes_in_turn(tmp_path: Path) -> None:
    path = table(tmp_path, "\ufeffsex,age\nF,60\n,n/a\nM,61.5\n")
    requested = RequestedConditions(CONDITIONS, path, STRATA, seed=4, num_volumes=3)
    found = [CONDITIONS.decode(requested(seed)) for seed in (4, 5, 6, 7)]
    assert found[0] == found[3] == {"age": 60.0, "sex": "F"} and found[2] == {"age": 61.5, "sex": "M"}
    assert found[1]["age"] is None and found[1]["sex"] in ("F", "M")


@pytest.mark.parametrize("between", [",", ";", "\t", " , "])
def test_tables_are_read_as_spreadsheets_write_them(tmp_path: Path, between: str) -> None:
    rows = (("age", "sex"), ("60", '"F"'), ("61.5", "M"))
    path = tmp_path / "asked.csv"
    path.write_text("\n".join(between.join(row) for row in rows).replace(' "', '"'), "utf-8-sig")
    requested = RequestedConditions(CONDITIONS, str(path), STRATA, num_volumes=2)
    assert [CONDITIONS.decode(requested(seed))["age"] for seed in (0, 1)] == [60.0, 61.5]


def test_text_of_an_annotation_server_is_a_request_and_empty_text_is_none() -> None:
    assert RequestedConditions(CONDITIONS, '{"age": 5, "sex": "F"}')(0).tolist() == [-0.875, 0.0]
    assert (
        RequestedConditions(CONDITIONS, "", STRATA)(0).tolist()
        == RequestedConditions(CONDITIONS, None, STRATA)(0).tolist()
    )


@pytest.mark.parametrize(("text", "message"), [
    ("age\n60\n", "expected the columns age, sex, but sex is missing"),
    ("age,sex\n60,F\n", r"expected one row for each of 2 volumes \(num_volumes\), got 1"),
    ("age,sex\n60,F\nold,F\n", "conditions of volume 1: expected a number for age, got 'old'"),
    ("age,sex\n60,F\nnan,F\n", "conditions of volume 1: expected a finite number for age"),
    ("age,sex\n60,F\n90,F\n", "conditions of volume 1: expected age 0 to 80 years, got 90"),
    ("age,sex,who\n60,F,x\n60,F,y\n", "conditions of volume 0: who is no declared condition; expected age, sex"),
    ("age,sex\n60,F\n60,x\n", "conditions of volume 1: expected sex to be F or M, got 'x'"),
    ("age (years),sex\n60,F\n61,F\n", r"but age is missing or there twice; got \['age \(years\)', 'sex'\]"),
    ("age,sex,age\n60,F,61\n60,F,61\n", "expected the columns age, sex, but age is missing or there twice"),
    ("age,sex\n60,F\n60\n", r"expected 2 cells in every row, got \['60'\]"),
    ("age,sex\n60,F\n60,F,7\n", r"expected 2 cells in every row, got \['60', 'F', '7'\]"),
    ("age;sex\n60.5 y;F\n61;F\n", "conditions of volume 0: expected a number for age, got '60.5 y'"),
    ("", "expected the columns age, sex, but age is missing"),
])  # fmt: skip
def test_bad_tables_are_refused_before_the_first_volume(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RequestedConditions(CONDITIONS, table(tmp_path, text), STRATA, num_volumes=2)


@pytest.mark.parametrize(("request_", "message"), [
    ({"height": 1}, "height is no declared condition; expected age, sex"),
    ({"age": 81}, "out of range"),
    ("age 71", "expected conditions as a mapping or as the path"),
    (71, "expected conditions as a mapping or as the path"),
])  # fmt: skip
def test_bad_requests_are_refused_by_name(request_: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RequestedConditions(CONDITIONS, request_, STRATA)


def test_unconditional_weights_take_no_request_and_missing_tables_are_missed() -> None:
    with pytest.raises(ValueError, match="since the weights were trained without any, got {'age': 71}"):
        RequestedConditions(Conditions(), {"age": 71})
    assert not RequestedConditions(Conditions()).conditions
    with pytest.raises(FileNotFoundError, match=r"none\.csv"):
        RequestedConditions(CONDITIONS, "none.csv")


def test_extrapolation_is_a_setting() -> None:
    vector = RequestedConditions(CONDITIONS, {"age": 100, "sex": "M"}, STRATA, allow_extrapolation=True)(0)
    assert vector.tolist() == [1.5, 1.0]


def test_a_whole_number_names_a_category_however_it_is_written() -> None:
    """JSON of a table with a gap gives 1.0 for 1, which a declaration, a case and a request may do, too."""
    graded = Conditions({"grade": {"values": [1, 2]}, "sex": {"values": ["F", "M"]}})
    counted = [
        {"stratum": {"grade": "2", "sex": "M"}, "patients": 7},
        {"stratum": {"grade": "1", "sex": "F"}, "patients": 9},
    ]
    for grade in (2, 2.0, "2"):
        requested = RequestedConditions(graded, {"grade": grade}, counted, min_patients=7)
        assert requested(0).tolist() == [1.0, 1.0], grade
