"""The split of patients: stable, complete, never empty."""

import pytest

from medical_diffusion_components.data.splits import SPLITS, split_patients

PATIENTS = [f"patient{i}" for i in range(500)]


def test_adding_patients_leaves_the_others_where_they_were():
    before, after = split_patients(PATIENTS[:300]), split_patients(PATIENTS)
    assert {p: after[p] for p in before} == before


def test_order_and_repetition_do_not_matter():
    assert split_patients(PATIENTS[::-1] + PATIENTS[:7]) == split_patients(PATIENTS)


def test_shares_are_near_the_ones_asked_for():
    names = list(split_patients(PATIENTS, validation=0.2, test=0.1).values())
    # three standard deviations of a binomial count of 500
    assert abs(names.count("validation") - 100) < 27 and abs(names.count("test") - 50) < 21


@pytest.mark.parametrize("count", [3, 4, 5, 8])
def test_every_split_of_a_small_cohort_has_a_patient(count):
    assert set(split_patients(PATIENTS[:count]).values()) == set(SPLITS)
    for salt in map(str, range(20)):  # most hashes are of held-out patients
        assert set(split_patients(PATIENTS[:count], 0.45, 0.45, salt).values()) == set(SPLITS)


def test_another_salt_draws_another_split():
    assert split_patients(PATIENTS, salt="b") != split_patients(PATIENTS)


def test_the_split_is_the_same_on_every_machine():
    # those whose SHA-256 begins with 0xe666 or more: if these change, test patients move into training
    places = split_patients([f"case{i}" for i in range(30)])
    assert {case for case in places if places[case] == "test"} == {"case19", "case20", "case27"}


@pytest.mark.parametrize("shares", [(0.5, 0.5), (-0.1, 0.1), (0.1, 1.0), (0, 0.1), (0.1, 0)])
def test_shares_that_leave_a_split_empty_are_refused(shares):
    with pytest.raises(ValueError, match="must be above 0, and together below 1"):
        split_patients(PATIENTS, *shares)


def test_two_patients_are_refused():
    with pytest.raises(ValueError, match="at least 3 patients, got 2"):
        split_patients(["a", "b", "a"])
