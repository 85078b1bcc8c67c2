"""The embedded cohort: invented subjects that differ, are plausible, and come out the same every time."""

import contextlib
import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import nibabel as nib
import numpy as np
import pytest
import torch

from medical_diffusion_components.cohorts import template as template_cohort
from medical_diffusion_components.cohorts.template import (
    TEMPLATE_COHORT_NOTICE,
    template_subject,
    write_template_cohort,
)
from medical_diffusion_components.cohorts.writing import write_subjects
from medical_diffusion_components.data.datasets import load_cases
from medical_diffusion_components.threads import one_thread

SIZE = (24, 28, 20)
FINE = (48, 56, 40)
NUM_SUBJECTS = 8


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


@pytest.fixture(scope="module")
def subjects():
    return [template_subject(i, SIZE) for i in range(NUM_SUBJECTS)]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return write_template_cohort(tmp_path_factory.mktemp("data") / "cohort", 4, SIZE)


def jacobian_determinants(warp, step=2.0):
    """By central differences on a 6 mm lattice over the template's brain."""
    low, high = template_cohort._full_template().box
    axes = [torch.arange(float(a), float(b), 6.0) for a, b in zip(low, high)]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    columns = [(warp.forward(points + e) - warp.forward(points - e)) / (2 * step) for e in step * torch.eye(3)]
    return torch.linalg.det(torch.stack(columns, dim=-1))


def test_no_deformation_folds_space():
    for index in range(12):
        warp, _ = template_cohort._random_anatomy(np.random.default_rng([7, index]))
        determinants = jacobian_determinants(warp)
        assert determinants.min() > 0.1 and determinants.max() < 5


def test_the_anatomy_of_subjects_differs_by_millimetres():
    points = template_cohort._full_template().surface[::50]
    places = []
    for index in range(10):
        warp, _ = template_cohort._random_anatomy(np.random.default_rng([0, index]))
        places.append(warp.inverse(points))
    spread = torch.stack(places).std(dim=0).norm(dim=-1)  # mm, at each point of the surface
    assert 3 < spread.median() < 15


def test_brain_volumes_are_those_of_people(subjects):
    # the template's own brain with its fluid is 1.89 litres, larger than most people's
    litres = [(s.label > 0).sum() * abs(np.linalg.det(s.affine[:3, :3])) / 1e6 for s in subjects]
    assert min(litres) > 1.2 and max(litres) < 2.7
    assert np.std(litres) > 0.05


def test_the_brain_touches_the_cube_and_lies_in_its_middle(subjects):
    for subject in subjects:
        voxels = np.argwhere(subject.label > 0)
        before, after = voxels.min(axis=0), np.array(SIZE) - 1 - voxels.max(axis=0)
        shares = (before + after) / np.array(SIZE)
        assert shares.min() <= 0.1  # the longest side fills the cube, but for voxels mostly outside the brain
        assert np.abs(before - after).max() <= 2


def test_the_volume_is_a_cube_in_the_world(subjects):
    for subject in subjects:
        sides = np.diag(subject.affine)[:3] * SIZE
        np.testing.assert_allclose(sides, sides[0])
        assert 150 < sides[0] < 230  # mm
        assert nib.aff2axcodes(subject.affine) == ("R", "A", "S")


def test_the_background_is_minus_one_and_is_where_the_label_is_zero(subjects):
    for subject in subjects:
        np.testing.assert_array_equal(subject.image == -1, subject.label == 0)
        assert subject.image.max() == 1
        assert set(np.unique(subject.label)) == {0, 1, 2, 3}


def test_white_matter_is_brighter_than_grey_and_grey_than_fluid():
    for index in range(3):
        subject = template_subject(index, FINE)
        fluid, grey, white = (subject.image[subject.label == k].mean() for k in (1, 2, 3))
        assert fluid < grey < white


def test_size_does_not_change_the_anatomy():
    coarse, fine = template_subject(3, SIZE), template_subject(3, FINE)
    np.testing.assert_allclose(np.diag(coarse.affine), [2, 2, 2, 1] * np.diag(fine.affine))
    pooled = (fine.label > 0).reshape(24, 2, 28, 2, 20, 2).mean(axis=(1, 3, 5)) >= 0.5
    assert np.mean(pooled == (coarse.label > 0)) > 0.97


def test_a_voxel_of_the_label_lies_where_the_affine_says():
    # undo the deformation by hand: the voxel's place in the template has the tissue that the label names
    subject = template_subject(2, FINE)
    warp, _ = template_cohort._random_anatomy(np.random.default_rng([0, 2]))
    voxels = np.argwhere(subject.label == 3)
    world = voxels @ subject.affine[:3, :3].T + subject.affine[:3, 3]
    white = template_cohort._read_template("wm")
    index = warp.forward(torch.from_numpy(world).float()).numpy() - white.affine[:3, 3]
    shares = np.asarray(white.dataobj)[tuple(np.round(index).astype(int).T)] / 255
    assert shares.mean() > 0.75


def test_a_subject_is_the_same_each_time_and_whatever_the_number(cohort, subjects):
    written = nib.load(cohort / "images" / "template_0002.nii.gz")
    np.testing.assert_array_equal(written.get_fdata(dtype=np.float32), subjects[2].image)
    np.testing.assert_allclose(written.affine, subjects[2].affine, rtol=1e-6)


def test_seed_and_number_both_make_other_subjects(subjects):
    others = [template_subject(0, SIZE, seed=1), subjects[1]]
    assert all(np.abs(other.image - subjects[0].image).mean() > 0.05 for other in others)


def test_the_cohort_is_a_dataset_that_says_what_it_is(cohort):
    cases = [case for split in ("training", "validation", "test") for case in load_cases(cohort, split)]
    assert sorted(case["case_id"] for case in cases) == [f"template_{i:04d}" for i in range(4)]
    datalist = json.loads((cohort / "dataset.json").read_text())
    assert datalist["description"] == TEMPLATE_COHORT_NOTICE and "Louis Collins" in datalist["licence"]
    assert "not a patient" in str(nib.load(cases[0]["image"]).header["descrip"])


def test_a_finished_cohort_is_taken_as_it_is(cohort):
    before = {path: path.stat().st_mtime_ns for path in cohort.rglob("*")}
    write_template_cohort(cohort, 4, SIZE)
    assert {path: path.stat().st_mtime_ns for path in cohort.rglob("*")} == before


@pytest.mark.parametrize("change", [{"num_subjects": 5}, {"size": (24, 24, 24)}, {"seed": 1}])
def test_another_cohort_is_not_overwritten(cohort, change):
    with pytest.raises(FileExistsError, match="should hold the template cohort"):
        write_template_cohort(cohort, **{"num_subjects": 4, "size": SIZE, **change})


@pytest.mark.parametrize(("name", "text"), [("notes.txt", "mine"), ("dataset.json", "{"), ("dataset.json", "[]")])
def test_a_folder_with_other_files_is_left_alone(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(FileExistsError, match="something else"):
        write_template_cohort(tmp_path, 3, SIZE)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_cohort_that_lost_files_is_not_taken_for_a_whole_one(cohort, tmp_path):
    damaged = shutil.copytree(cohort, tmp_path / "cohort")
    (damaged / "labels" / "template_0001.nii.gz").unlink()
    with pytest.raises(FileExistsError, match="lost 1 of its files"):
        write_template_cohort(damaged, 4, SIZE)


def test_an_interrupted_call_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(template_cohort, "_datalist", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_template_cohort(tmp_path / "cohort", 3, SIZE)
    assert list(tmp_path.iterdir()) == []


def test_two_writers_at_once_make_one_cohort(tmp_path):
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(write_template_cohort, tmp_path / "cohort", 3, SIZE) for _ in range(2)]
    assert [call.result() for call in calls] == [tmp_path / "cohort"] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["cohort"]


@pytest.mark.parametrize("size", [(64, 64), (64, 64, 4), (64, 64, 32.5), 64])
def test_a_size_that_is_none_is_refused(size):
    with pytest.raises(ValueError, match="three whole numbers"):
        template_subject(0, size)


def test_a_negative_seed_is_refused():
    with pytest.raises(ValueError, match="start at 0"):
        template_subject(0, SIZE, seed=-1)


@pytest.mark.slow
def test_without_variation_the_template_comes_back(monkeypatch):
    # the template's brain is 145 x 181 x 155 voxels of 1 mm: at 181 voxels every sample falls on one of them
    for name, value in {
        "VELOCITY_MM": {9.0: 0.0},
        "LOG_SCALE": (0, 0),
        "ROTATION_DEGREES": 0,
        "SHEAR": 0,
        "CONTRAST": dict.fromkeys(("other", "grey", "white"), (1, 1)),
        "BIAS": {60.0: 0.0},
        "NOISE": (0, 0),
    }.items():
        monkeypatch.setattr(template_cohort, name, value)
    subject = template_subject(0, (181, 181, 181))
    np.testing.assert_allclose(np.diag(subject.affine), 1)
    template = template_cohort._read_template("t1")
    voxels = np.argwhere(subject.label > 0)
    index = np.round(voxels + subject.affine[:3, 3] - template.affine[:3, 3]).astype(int)
    t1 = np.asarray(template.dataobj)
    assert len(voxels) == np.count_nonzero(t1)
    np.testing.assert_allclose((subject.image[tuple(voxels.T)] + 1) / 2, t1[tuple(index.T)] / t1.max(), atol=0.02)


def test_several_subjects_at_once_are_the_same_ones(cohort, tmp_path):
    found = json.loads((cohort / "dataset.json").read_text())["template_cohort"]
    with threads(3):
        again = write_template_cohort(tmp_path / "again", found["num_subjects"], found["size"], found["seed"])
        assert torch.get_num_threads() == 3
    for file in sorted(cohort.rglob("*.nii.gz")):
        one, other = (nib.load(path) for path in (file, again / file.relative_to(cohort)))
        assert np.array_equal(one.get_fdata(), other.get_fdata()) and np.array_equal(one.affine, other.affine)


def test_an_error_in_one_of_several_subjects_ends_the_writing():
    def write(index):
        if index == 1:
            raise OSError("disk full")

    with threads(3):
        with pytest.raises(OSError, match="disk full"):
            write_subjects(write, 20, "cohort")
        assert torch.get_num_threads() == 3


@contextlib.contextmanager
def threads(number):
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
