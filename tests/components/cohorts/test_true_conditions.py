"""The true values that stand beside the cases of an embedded cohort."""

import json

import nibabel as nib
import numpy as np
import pytest

from medical_diffusion_components.cohorts import write_phantom_cohort, write_template_cohort
from medical_diffusion_components.data import load_cases
from medical_diffusion_components.data.splits import SPLITS

SIZE = (24, 20, 16)


def counted(case, *values):
    return int(np.isin(np.asarray(nib.load(case["label"]).dataobj), values).sum())


def all_cases(folder):
    return [case for split in SPLITS for case in load_cases(folder, split)]


def test_values_of_brains_are_those_of_their_own_label_maps(tmp_path):
    cases = all_cases(write_template_cohort(tmp_path / "brains", 4, SIZE))
    assert len(cases) == 4
    for case in cases:
        brain, tissue = counted(case, 1, 2, 3), counted(case, 2, 3)
        found = case["conditions"]
        assert found.keys() == {"brain_share", "parenchymal_fraction"}
        assert found["brain_share"] == pytest.approx(brain / np.prod(SIZE), abs=1e-6)
        assert found["parenchymal_fraction"] == pytest.approx(tissue / brain, abs=1e-6)
    assert len({case["conditions"]["parenchymal_fraction"] for case in cases}) == 4


def test_a_chest_has_a_nodule_if_a_voxel_of_one_is_in_it(tmp_path):
    cases = all_cases(write_phantom_cohort(tmp_path / "chests", "chest", 8, (32, 32, 32)))
    expected = {case["case_id"]: "yes" if counted(case, 7) else "no" for case in cases}
    assert {case["case_id"]: case["conditions"]["nodule"] for case in cases} == expected
    assert set(expected.values()) == {"no", "yes"}


def test_glandular_fraction_is_of_each_breast_alone(tmp_path):
    cases = all_cases(write_phantom_cohort(tmp_path / "breasts", "breast", 3, SIZE))
    assert len(cases) == 6
    for case in cases:
        expected = counted(case, 2) / counted(case, 1, 2)
        assert case["conditions"] == {"glandular_fraction": pytest.approx(expected, abs=1e-6)}


def test_findings_of_knees_are_those_that_were_drawn(tmp_path):
    from medical_diffusion_components.cohorts import knee_phantom

    cases = all_cases(write_phantom_cohort(tmp_path / "knees", "knee", 6, (16, 16, 12), seed=2))
    for case in cases:
        drawn = knee_phantom(int(case["case_id"][-4:]), 2, (8, 8, 8)).findings
        assert case["conditions"] == {name: "yes" if value else "no" for name, value in drawn.items()}
    assert {case["conditions"]["abnormal"] for case in cases} == {"no", "yes"}


def test_values_stand_in_the_datalist_and_in_no_file_of_a_volume(tmp_path):
    folder = write_template_cohort(tmp_path / "brains", 3, (12, 12, 12))
    content = json.loads((folder / "dataset.json").read_text())
    assert all("conditions" in entry for split in SPLITS for entry in content[split])
    assert "version" in content["template_cohort"] and "conditions" not in content["template_cohort"]
