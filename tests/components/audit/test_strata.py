"""What an audit counts for each combination of conditions, and what it does not say of training patients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from medical_diffusion_components.audit import Verdict, flagged_share
from medical_diffusion_components.audit.strata import Strata, by_stratum, strata_in_words
from medical_diffusion_components.data import Conditions, condition_strata

CONDITIONS = Conditions({"age": {"range": [0, 80], "unit": "years"}, "sex": {"values": ["F", "M"]}})
ALPHA, PATIENTS = 0.05, 39


def patients(*rows: tuple[float, str, int]) -> list[dict[str, Any]]:
    """For the note: 30 young women and 10 old men are counted, 3 old women are too few."""
    cases = [{"age": age, "sex": sex} for age, sex, count in rows for _ in range(count)]
    made = [{"case_id": f"c{n}", "patient_id": f"p{n}", "conditions": values} for n, values in enumerate(cases)]
    return condition_strata(CONDITIONS, made, 5)["condition_strata"]


STRATA = patients((5, "F", 30), (75, "M", 10), (75, "F", 3))


def audited(*rows: tuple[float | None, str | None, int, int, int]) -> Strata:
    """Rows of age, sex, volumes, flagged ones, copies among them; age -1 stands for a volume without a note."""
    samples, verdicts = [], []
    for age, sex, count, flagged, copies in rows:
        for place in range(count):
            word = "copy" if place < copies else "withheld" if place < flagged else "released"
            verdicts.append(Verdict(word, 0.5, 0.025 if place < flagged else 0.5, 0.5, 0.5, 0, "1d"))
            asked = {} if age == -1 else {"conditions": {"age": age, "sex": sex}}
            samples.append({"image": f"{len(samples)}.nii.gz", "case_id": f"{len(samples)}", **asked})
    order = np.random.default_rng(0).permutation(len(samples))  # as they lie in a folder
    return by_stratum([samples[n] for n in order], [verdicts[n] for n in order], CONDITIONS, STRATA, ALPHA, PATIENTS)


def plain(found: Any) -> Any:
    if hasattr(found, "_asdict"):
        return {key: plain(value) for key, value in found._asdict().items()}
    return [plain(part) for part in found] if isinstance(found, list) else found


def test_each_combination_has_its_own_counts_and_the_rarest_comes_first() -> None:
    found = audited((5, "F", 40, 1, 0), (78, "M", 20, 5, 2), (75, "F", 8, 4, 3))
    assert [(stratum.conditions, stratum.patients) for stratum in found.each] == [
        ({"age": [70.0, 80.0], "sex": "F"}, None),
        ({"age": [70.0, 80.0], "sex": "M"}, 10),
        ({"age": [0.0, 10.0], "sex": "F"}, 30),
    ]
    assert [(s.flagged.flagged, s.flagged.volumes, s.copies) for s in found.each] == [(4, 8, 3), (5, 20, 2), (1, 40, 0)]
    p = np.array([0.025] * 5 + [0.5] * 15)
    assert found.each[1].flagged == flagged_share(p, ALPHA, PATIENTS), "interval and p as for the whole"
    assert found.not_noted is None


def test_rare_combinations_are_also_taken_together() -> None:
    """Two volumes each say nothing; eight do."""
    found = audited(*((age, "M", 2, 1, 0) for age in (5, 15, 25, 35)), (5, "F", 7, 0, 0))
    assert found.rare is not None and found.rare.enough
    assert (found.rare.flagged.flagged, found.rare.flagged.volumes, found.rare.patients) == (4, 8, None)
    assert [stratum.enough for stratum in found.each] == [False] * 4 + [True]
    assert audited((5, "F", 7, 0, 0)).rare is None


@pytest.mark.parametrize(("volumes", "enough"), [(1, False), (5, False), (6, True)])
def test_five_volumes_say_nothing_and_six_do(volumes: int, enough: bool) -> None:
    """If none of n is flagged, the interval ends at 1 - 0.025 ** (1 / n): 0.522 for 5, 0.459 for 6."""
    [stratum] = audited((5, "F", volumes, 0, 0)).each
    assert stratum.enough is enough and stratum.flagged.interval[1] == pytest.approx(1 - 0.025 ** (1 / volumes))


def test_a_value_that_was_left_open_may_be_any() -> None:
    found = audited((None, "F", 1, 0, 0), (None, None, 2, 0, 0), (75, None, 3, 0, 0))
    assert {(s.conditions["age"] is None, s.conditions["sex"]): s.patients for s in found.each if s.conditions} == {
        (True, "F"): 30, (True, None): 40, (False, None): 10,
    }  # fmt: skip


def test_ages_beyond_the_range_are_rare_and_volumes_without_a_note_are_apart() -> None:
    found = audited((95, "F", 1, 0, 0), (-1, None, 2, 1, 0), (-5, "F", 1, 0, 0))
    assert sorted(s.conditions["age"] for s in found.each if s.conditions) == ["above 80", "below 0"]
    assert found.rare is not None and found.rare.flagged.volumes == 2
    assert found.not_noted is not None and found.not_noted.flagged.flagged == 1 and found.not_noted.conditions is None


def test_conditions_that_are_none_of_the_generators_are_refused_with_the_volume() -> None:
    verdict = Verdict("released", 0.5, 0.5, 0.5, 0.5, 0, "1d")
    with pytest.raises(ValueError, match=r"some.nii.gz: height is no declared condition; expected age, sex"):
        by_stratum([{"case_id": "some.nii.gz", "conditions": {"height": 3}}], [verdict], CONDITIONS, STRATA, ALPHA, 39)


def test_the_report_says_how_many_patients_only_where_the_note_does() -> None:
    found = plain(audited((5, "F", 40, 1, 0), (75, "F", 2, 2, 1), (95, None, 1, 0, 0), (-1, None, 6, 0, 0)))
    lines = [line for line in strata_in_words(found) if line.startswith("| ") and "asked for" not in line]
    share, interval = "2 of 2: too few volumes to say anything", "1 of 40 = 2.5 % (0.1 % to 13.2 %)"
    assert lines == [
        "| **all that are too rare for the weights' note** | not counted | 1 | 2 of 3: too few volumes to say anything | |",
        "| age above 80; sex left open | not counted | 0 | 0 of 1: too few volumes to say anything | |",
        f"| age 70 to 80; sex F | not counted | 1 | {share} | |",
        f"| age 0 to 10; sex F | 30 | 0 | {interval} | {found['each'][-1]['flagged']['p_value']:.3g} |",
        "| not noted beside the volumes | unknown | 0 | 0 of 6 = 0.0 % (0.0 % to 45.9 %) | 1 |",
    ]
