"""Outliers against the formula, written out."""

from __future__ import annotations

import math

import pytest

from medical_diffusion_components.preflight.outliers import Quantity, name_outliers, name_rare

LENGTH = Quantity("length", "mm", 1e-3)


def test_outliers_lie_beyond_three_and_a_half_robust_deviations():
    values = {"a": 100.0, "b": 101.0, "c": 103.0, "d": 98.0, "e": 99.5, "f": 108.5, "g": 114.0}
    logs = sorted(map(math.log, values.values()))
    median = logs[3]
    deviation = 1.4826 * sorted(abs(x - median) for x in logs)[3]
    beyond = {case for case, value in values.items() if abs(math.log(value) - median) > 3.5 * deviation}
    assert beyond == {"g"} and set(name_outliers(LENGTH, values)) == beyond
    assert name_outliers(LENGTH, values)["g"] == "length 114 mm (median 101)"


def test_where_all_others_are_the_same_the_least_deviation_counts():
    same = dict.fromkeys("abcdef", 10.0)
    quantity = LENGTH._replace(least=0.02)
    assert name_outliers(quantity, {**same, "near": 10.5, "far": 12.0}).keys() == {"far"}
    assert name_outliers(quantity, {"a": 1.0, "b": 1.0, "c": 1.0, "d": 9.0}) == {}, "too few to say"


def test_what_is_compared_downwards_has_no_outlier_above():
    likeness = Quantity("likeness", "", 0.03, ratio=False, low_only=True)
    values = {"a": 0.5, "b": 0.5, "c": 0.5, "d": 0.5, "e": 1.0, "f": 0.1}
    assert name_outliers(likeness, values).keys() == {"f"}


@pytest.mark.parametrize(("number", "named"), [(1, True), (2, True), (3, False)])
def test_a_value_is_rare_up_to_a_tenth(number, named):
    values = {str(k): "axial" if k < number else "sagittal" for k in range(20)}
    assert bool(name_rare("plane", values)) is named
