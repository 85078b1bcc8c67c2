"""What is known of a data set: its fingerprint, spacing, weights of cases and scale."""

import json
import shutil

import numpy as np
import pytest
from folders_of_cases import write_nifti

from medical_diffusion_components.data.datasets import (
    case_weights,
    check_spacing,
    data_fingerprint,
    load_cases,
    median_spacing,
)


def test_the_fingerprint_follows_the_data_and_not_the_place(prepared, tmp_path):
    moved = shutil.copytree(prepared, tmp_path / "elsewhere")
    cases = load_cases(moved, "training")
    assert data_fingerprint(cases[::-1]) == data_fingerprint(load_cases(prepared, "training"))


@pytest.mark.parametrize("name", ["image", "label"])
def test_the_fingerprint_changes_with_every_file(prepared, name):
    cases = load_cases(prepared, "training")
    before = data_fingerprint(cases)
    write_nifti(prepared / "case1" / f"{name}.nii.gz", seed=99)
    assert data_fingerprint(cases) != before


def test_the_fingerprint_changes_when_two_cases_swap_names(prepared):
    first, second = load_cases(prepared, "training")
    swapped = [{**first, "case_id": "case1"}, {**second, "case_id": "case0"}]
    assert data_fingerprint(swapped) != data_fingerprint([first, second])


def test_the_fingerprint_changes_with_a_scale_that_preparation_fixed(prepared):
    cases = load_cases(prepared, "training")
    scaled = [{**case, "intensity_range": [0.0, 255.0], "window": [-160.0, 240.0]} for case in cases]
    other = [{**case, "window": [-1000.0, 400.0]} for case in scaled]
    assert len({data_fingerprint(one) for one in (cases, scaled, other)}) == 3


def test_median_spacing_is_taken_along_ras_axes(tmp_path):
    sagittal = np.array([[0, 0, 3.0, 0], [0.5, 0, 0, 0], [0, -0.7, 0, 0], [0, 0, 0, 1]])  # voxel axes A, I, R
    affines = [sagittal, np.diag([1, 1, 1, 1]), np.diag([-5, 0.6, 0.9, 1])]
    cases = [{"image": write_nifti(tmp_path / f"{i}.nii.gz", affine=a)} for i, a in enumerate(affines)]
    assert median_spacing(cases) == pytest.approx((3.0, 0.6, 0.9))
    assert median_spacing(cases, "PSR") == pytest.approx((0.6, 0.9, 3.0))


def test_the_spacing_of_no_cases_is_refused():
    with pytest.raises(ValueError, match="no cases"):
        median_spacing([])


def test_the_spacing_of_another_format_is_refused():
    with pytest.raises(ValueError, match=r"scan\.nrrd: expected a NIfTI file"):
        median_spacing([{"image": "scan.nrrd"}])


def test_weights_of_cases_are_those_of_the_datalist():
    assert case_weights([{"case_id": "a", "weight": 2}, {"case_id": "b", "weight": 0.5}]) == [2.0, 0.5]


@pytest.mark.parametrize("weight", [None, -1, float("nan"), float("inf"), "2", True])
def test_a_case_without_a_weight_is_named(weight):
    with pytest.raises(ValueError, match=f"at least 0 for case b in dataset.json, got {weight!r}"):
        case_weights([{"case_id": "a", "weight": 2}, {"case_id": "b", "weight": weight}])


def test_only_a_window_is_a_scale_that_stays(prepared):
    content = json.loads((prepared / "dataset.json").read_text())
    for limits_from, fixed in (("volume", False), ("percentiles", False), ("window", True)):
        scale = {"limits_from": limits_from, "limits": [-1000, 1000], "range": [-1.0, 1.0]}
        (prepared / "dataset.json").write_text(json.dumps({**content, "decided": {"scale": scale}}))
        case = load_cases(prepared, "training")[0]
        assert (case.get("window") == [-1000.0, 1000.0]) is fixed and ("intensity_range" in case) is fixed
    (prepared / "dataset.json").write_text(json.dumps({**content, "decided": {"scale": {**scale, "limits": [1]}}}))
    with pytest.raises(ValueError, match=r'dataset\.json: a scale by a window needs "limits" and "range"'):
        load_cases(prepared, "training")


def test_volumes_of_several_spacings_are_refused_unless_resampled(tmp_path):
    spacings = {"a": (2.0, 1.0, 3.0), "b": (-2.05, -1.0, 3.0), "c": (2.0, 1.3, 3.0)}
    cases = {
        name: {"image": write_nifti(tmp_path / f"{name}.nii", 0, np.diag([*s, 1]))} for name, s in spacings.items()
    }
    turned = np.diag([2.0, 1.0, 3.0, 1.0])[:, [1, 0, 2, 3]]
    cases["d"] = {"image": write_nifti(tmp_path / "d.nii", 0, turned)}
    check_spacing([cases["a"], cases["b"], cases["d"]], resample=False)
    with pytest.raises(ValueError, match=r"one spacing, got \S*a\.nii 2 x 1 x 3 mm and \S*c\.nii 2 x 1\.3 x 3 mm"):
        check_spacing(list(cases.values()), resample=False)
    check_spacing(list(cases.values()), resample=True)
