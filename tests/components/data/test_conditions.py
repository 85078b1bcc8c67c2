"""Declared conditions: every value comes back as it went in, and whatever means something else is refused by name."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch

from medical_diffusion_components.data.conditions import Conditions

DECLARED = {
    "sex": {"values": ["F", "M", "O"]},
    "age": {"range": [50, 90], "unit": "years"},
    "grade": {"values": [1, 2]},
}


def case(number: int, **conditions: Any) -> dict[str, Any]:
    return {"case_id": f"c{number}", "image": f"c{number}.nii.gz", "conditions": conditions}


def test_values_become_numbers_in_the_names_order_and_come_back() -> None:
    conditions = Conditions(DECLARED)
    assert conditions.names == ["age", "grade", "sex"]
    vector = conditions.encode({"sex": "M", "age": 80, "grade": 2}, "here")
    assert vector.tolist() == [0.5, 1.0, 1.0] and vector.dtype == torch.float32
    assert conditions.decode(vector) == {"age": 80.0, "grade": "2", "sex": "M"}
    odd = {"age": 71.2345, "grade": "1", "sex": "O"}
    assert conditions.decode(conditions.encode(odd, "here")) == odd, "six digits"
    assert Conditions(dict(reversed(DECLARED.items()))).encode({"age": 80}, "here")[0] == vector[0]


def test_what_is_missing_is_nan_and_comes_back_as_none() -> None:
    conditions = Conditions(DECLARED)
    vector = conditions.encode({"age": None}, "here")
    assert vector.isnan().all() and len(vector) == 3
    assert conditions.decode(vector) == {"age": None, "grade": None, "sex": None}
    assert conditions.extrapolated(vector) == []


@pytest.mark.parametrize("age", [50, 61.3, 71, 90])
def test_decoded_numbers_are_those_that_were_asked_for(age: float) -> None:
    conditions = Conditions(DECLARED)
    assert conditions.decode(conditions.encode({"age": age}, "here"))["age"] == age


@pytest.mark.parametrize(("values", "message"), [
    ({"height": 1.8}, "volume 3: height is no declared condition; expected age, grade, sex"),
    ({"age": "old"}, "volume 3: expected a number for age, got 'old'"),
    ({"age": True}, "volume 3: expected a number for age, got True"),
    ({"age": math.nan}, "expected a finite number for age, got nan"),
    ({"age": math.inf}, "expected a finite number for age, got inf"),
    ({"age": 49.9}, "expected age 50 to 90 years, got 49.9, which is out of range"),
    ({"sex": "f"}, "expected sex to be F or M or O, got 'f'"),
    ({"sex": ["F"]}, r"expected sex to be F or M or O, got ['F']"),
    ({"grade": True}, "expected grade to be 1 or 2, got True"),
    ({"grade": 1.5}, "expected grade to be 1 or 2, got 1.5"),
])  # fmt: skip
def test_values_that_cannot_be_are_refused_by_name(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Conditions(DECLARED).encode(values, "volume 3")


def test_values_beyond_the_range_are_encoded_when_allowed_and_found_again() -> None:
    conditions = Conditions(DECLARED)
    vector = conditions.encode({"age": 100, "grade": 2, "sex": "O"}, "here", extrapolate=True)
    assert vector.tolist() == [1.5, 1.0, 2.0]
    assert conditions.decode(vector)["age"] == 100 and conditions.extrapolated(vector) == ["age"]
    assert conditions.extrapolated(conditions.encode({"age": 90, "sex": "O"}, "here")) == []
    assert conditions.extrapolated(conditions.encode({"age": 30}, "here", extrapolate=True)) == ["age"]


@pytest.mark.parametrize(("declared", "message"), [
    (["age"], "expected conditions as a mapping"),
    ({"age": [50, 90]}, "condition age: expected {range"),
    ({"age": {"range": [50, 90], "step": 1}}, "condition age: expected {range"),
    ({"age": {"range": [50, 90], "values": ["F", "M"]}}, "condition age: expected {range"),
    ({"age": {"range": [90, 50]}}, "two ascending numbers, got [90, 50]"),
    ({"age": {"range": [50, math.nan]}}, "two ascending numbers"),
    ({"age": {"range": [50, math.inf]}}, "two ascending numbers"),
    ({"age": {"range": "59"}}, "two ascending numbers"),
    ({"sex": {"values": ["F"]}}, "two or more different values"),
    ({"sex": {"values": ["F", "F"]}}, "two or more different values"),
    ({"sex": {"values": "FM"}}, "two or more different values"),
    ({"sure": {"values": [True, False]}}, "quoted"),
    ({"sure": {"values": ["no", True]}}, "quoted"),
    ({"grade": {"values": [1, 1.5]}}, "two or more different values"),
    ({"the age": {"range": [50, 90]}}, "condition the age: expected a name"),
])  # fmt: skip
def test_declarations_of_another_form_are_refused(declared: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Conditions(declared)


def test_without_a_declaration_there_is_nothing() -> None:
    for nothing in (Conditions(None), Conditions({})):
        assert not nothing and nothing.encode({}, "here").shape == (0,) and nothing.described() == ""
        assert nothing.of_cases([case(0, age=71)])[0].shape == (0,)


def test_cases_give_what_is_declared_and_may_lack_values() -> None:
    conditions = Conditions({"age": {"range": [50, 90]}, "sex": {"values": ["F", "M"]}})
    vectors = conditions.of_cases([case(0, age=50, sex="M", site="x"), case(1, sex=None), {"case_id": "c2"}])
    assert vectors[0].tolist() == [-1.0, 1.0]
    assert vectors[1].isnan().all() and vectors[2].isnan().all()


def test_a_column_that_no_case_has_is_missed_by_name() -> None:
    conditions = Conditions({"age": {"range": [50, 90]}})
    with pytest.raises(ValueError, match="no case has a value of the declared condition age; the cases have sex"):
        conditions.of_cases([case(0, sex="M", age=None), case(1)])


def test_a_bad_value_in_a_table_names_its_case() -> None:
    with pytest.raises(ValueError, match="case c1: expected a number for age"):
        Conditions({"age": {"range": [50, 90]}}).of_cases([case(0, age=51), case(1, age="61 years")])


def test_people_read_what_can_be_asked_for() -> None:
    assert Conditions(DECLARED).described() == "age 50 to 90 years; grade 1 or 2; sex F or M or O"
