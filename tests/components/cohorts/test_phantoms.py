"""Phantoms: anatomy where it belongs, tissues of known values, the same every time."""

import json

import nibabel as nib
import numpy as np
import pytest

from medical_diffusion_components.cohorts import breast as phantom_breast
from medical_diffusion_components.cohorts import chest as phantom_chest
from medical_diffusion_components.cohorts import knee as phantom_knee
from medical_diffusion_components.cohorts.phantoms import (
    PHANTOM_NOTICE,
    breast_phantom,
    chest_phantom,
    knee_phantom,
    on_axes,
    ras_order,
    write_phantom_cohort,
)
from medical_diffusion_components.data.datasets import load_cases

PHANTOMS = {"knee": knee_phantom, "breast": breast_phantom, "chest": chest_phantom}
SIZE = (48, 44, 40)
NUM_SUBJECTS = 6


@pytest.fixture(scope="module")
def chests():
    return [chest_phantom(i, 0, (64, 64, 52)) for i in range(NUM_SUBJECTS)]


@pytest.fixture(scope="module")
def breasts():
    return [breast_phantom(i, 0, (80, 80, 32)) for i in range(NUM_SUBJECTS)]


@pytest.fixture(scope="module")
def knees():
    return [knee_phantom(i, 0, (40, 64, 64)) for i in range(NUM_SUBJECTS)]


@pytest.fixture(scope="module", params=["knee", "breast", "chest"])
def cohort(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "cohort"
    return write_phantom_cohort(folder, request.param, 4, (24, 28, 20)), request.param


def litres(phantom, voxels):
    return np.count_nonzero(voxels) * abs(np.linalg.det(phantom.affine[:3, :3])) / 1e6


def world(phantom, voxels):
    """Mean place of some voxels, mm: right, anterior, superior."""
    return np.argwhere(voxels).mean(axis=0) @ phantom.affine[:3, :3].T + phantom.affine[:3, 3]


def core(phantom, label):
    """Median of a tissue away from its borders."""
    from scipy.ndimage import binary_erosion

    return np.median(phantom.image[binary_erosion(phantom.label == label)])


# --- all anatomies ---


@pytest.mark.parametrize("anatomy", PHANTOMS)
def test_a_subject_is_the_same_each_time(anatomy):
    first, again = (PHANTOMS[anatomy](3, 1, SIZE) for _ in range(2))
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.label, again.label)
    assert first.findings == again.findings


@pytest.mark.parametrize("anatomy", PHANTOMS)
def test_seed_and_number_both_make_other_subjects(anatomy):
    labels = [PHANTOMS[anatomy](*which, SIZE).label for which in ((0, 0), (1, 0), (0, 1))]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert np.mean(labels[a] != labels[b]) > 0.02


@pytest.mark.parametrize("anatomy", PHANTOMS)
def test_size_does_not_change_the_anatomy(anatomy):
    coarse, fine = PHANTOMS[anatomy](2, 0, (32, 32, 32)), PHANTOMS[anatomy](2, 0, (64, 64, 64))
    np.testing.assert_allclose(np.diag(coarse.affine), [2, 2, 2, 1] * np.diag(fine.affine))
    pooled = fine.mask.reshape(32, 2, 32, 2, 32, 2).mean(axis=(1, 3, 5)) >= 0.5
    assert np.mean(pooled == coarse.mask) > 0.97


@pytest.mark.parametrize("anatomy", PHANTOMS)
def test_spacing_is_kept_and_the_volume_centred(anatomy):
    phantom = PHANTOMS[anatomy](0, 0, (20, 24, 16), (3.0, 2.0, 5.0))
    np.testing.assert_allclose(np.diag(phantom.affine), [3, 2, 5, 1])
    np.testing.assert_allclose(phantom.affine @ [9.5, 11.5, 7.5, 1], [0, 0, 0, 1])
    assert phantom.image.shape == phantom.label.shape == (20, 24, 16)
    assert phantom.image.dtype == np.float32 and phantom.label.dtype == np.uint8


@pytest.mark.parametrize("anatomy", PHANTOMS)
def test_a_bad_size_is_refused(anatomy):
    with pytest.raises(ValueError, match="three whole numbers"):
        PHANTOMS[anatomy](0, 0, (64, 64))


# --- chest ---


def test_tissues_of_the_chest_have_their_hounsfield_units(chests):
    for chest in chests:
        assert -920 < core(chest, phantom_chest.LUNG) < -780
        assert -120 < core(chest, phantom_chest.FAT) < -60
        assert 20 < core(chest, phantom_chest.SOFT) < 80
        assert np.percentile(chest.image[chest.label == phantom_chest.BONE], 50) > 200
    fine = chest_phantom(1, 0, (250, 250, 16), (1.4, 1.4, 3.0))
    bone = fine.image[fine.label == phantom_chest.BONE]
    assert 300 < np.percentile(bone, 90) < 1000
    assert np.median(fine.image[fine.label == phantom_chest.AIRWAY]) < -850


def test_the_lungs_are_of_human_size_and_the_right_one_is_larger(chests):
    right, left = [], []
    for chest in chests:
        lung = chest.label == phantom_chest.LUNG
        middle = lung.shape[0] // 2
        right.append(litres(chest, lung[middle:]))
        left.append(litres(chest, lung[:middle]))
    assert 1 < min(left) and max(right) < 4
    assert np.mean(right) > np.mean(left)


def test_the_heart_lies_left_and_the_spine_behind(chests):
    for chest in chests:
        heart = chest.label == phantom_chest.BLOOD
        heart[:, :, : heart.shape[2] // 4] = False
        assert world(chest, heart)[0] < -3
        column = chest.label == phantom_chest.BONE
        column[np.abs(np.arange(64) - 31.5) > 5] = False
        assert world(chest, column)[1] < -30


def test_without_its_deformation_the_bony_cage_is_symmetric(monkeypatch):
    def plain(paint, size, spacing, background, warp, amplitude):
        return phantom_shapes_render(paint, size, spacing, background, warp, 0.0)

    phantom_shapes_render = phantom_chest.render
    monkeypatch.setattr(phantom_chest, "render", plain)
    bone = chest_phantom(0, 0, (80, 80, 40)).label == phantom_chest.BONE
    overlap = 2 * np.count_nonzero(bone & bone[::-1]) / (2 * np.count_nonzero(bone))
    assert overlap > 0.95


def test_padding_is_below_air_and_outside_the_circle():
    kinds = set()
    for subject in range(12):
        chest = chest_phantom(subject, 0, (32, 32, 8))
        lowest = chest.image.min()
        kinds.add(lowest if lowest < phantom_chest.LOWEST_HU else None)
        if lowest < phantom_chest.LOWEST_HU:
            x, y = np.meshgrid(np.arange(32) - 15.5, np.arange(32) - 15.5, indexing="ij")
            np.testing.assert_array_equal(chest.image == lowest, np.repeat((np.hypot(x, y) > 16)[..., None], 8, axis=2))
    assert kinds == set(phantom_chest.PADDING_HU)


def test_some_chests_have_nodules_and_say_so(chests):
    counts = [chest.findings["nodules"] for chest in chests]
    assert 0 in counts and max(counts) > 0
    for chest, count in zip(chests, counts):
        assert np.any(chest.label == phantom_chest.NODULE) == (count > 0)


# --- breast ---


def test_fat_is_bright_gland_dark_and_lung_black(breasts):
    for breast in breasts:
        fat = core(breast, phantom_breast.FATTY)
        gland = np.median(breast.image[breast.label == phantom_breast.GLANDULAR])
        assert gland < 0.65 * fat
        lung = breast.image[26:30, 18:22, 14:18]
        assert np.median(lung) < 0.3 * fat


def test_saturation_darkens_fat_and_leaves_the_anatomy():
    plain, saturated = (breast_phantom(1, 0, (80, 80, 24), fat_saturated=f) for f in (False, True))
    np.testing.assert_array_equal(plain.label, saturated.label)
    assert core(saturated, phantom_breast.FATTY) < 0.3 * core(plain, phantom_breast.FATTY)


def test_the_outline_holds_the_breasts_and_neither_muscle_nor_air(breasts):
    for breast in breasts:
        inside = breast.image[breast.mask]
        assert np.mean(inside < 100) < 0.03  # edge voxels
        middle = breast.mask.shape[0] // 2
        for half in (breast.mask[:middle], breast.mask[middle:]):
            assert 0.15 < litres(breast, half) < 2.2
        assert world(breast, breast.mask)[1] > 20  # in front


def test_breasts_of_a_subject_differ_in_size(breasts):
    ratios = []
    for breast in breasts:
        middle = breast.mask.shape[0] // 2
        ratios.append(litres(breast, breast.mask[middle:]) / litres(breast, breast.mask[:middle]))
    assert np.std(np.log(ratios)) > 0.05 and all(0.4 < r < 2.5 for r in ratios)


def test_the_centre_moves_the_window_and_not_the_anatomy():
    whole = breast_phantom(0, 0, (60, 60, 20), (5.0, 5.0, 8.0))
    part = breast_phantom(0, 0, (60, 40, 20), (5.0, 5.0, 8.0), centre=(0, 50, 0))
    # a window of another shape may round otherwise: that decides where a voxel's centre lies on a surface
    assert (part.label != whole.label[:, 20:]).mean() < 1e-3
    np.testing.assert_allclose(part.affine[:3, 3], whole.affine[:3, 3] + [0, 100, 0])


# --- knee ---


def test_bones_of_the_knee_lie_above_and_below_the_joint(knees):
    for knee in knees:
        bone = knee.label == phantom_knee.BONE
        height = np.arange(64) - 31.5
        assert np.count_nonzero(bone & (height > 10)) > 2000 < np.count_nonzero(bone & (height < -10))
        assert 0.1 < litres(knee, bone) < 0.6
        assert abs(world(knee, knee.label == phantom_knee.MENISCUS)[2]) < 5  # at the joint
        assert -5 < world(knee, knee.label == phantom_knee.CARTILAGE)[2] < 25  # there and behind the knee cap


def test_menisci_and_ligaments_are_dark_and_cartilage_is_not():
    knee = knee_phantom(0, 0, (64, 120, 120))
    muscle = core(knee, phantom_knee.MUSCLE)
    assert np.median(knee.image[knee.label == phantom_knee.MENISCUS]) < 0.6 * muscle
    assert np.median(knee.image[knee.label == phantom_knee.LIGAMENT]) < 0.6 * muscle
    assert np.median(knee.image[knee.label == phantom_knee.CARTILAGE]) > muscle


def test_knees_are_left_and_right_and_fat_saturated_or_not(knees):
    # the fibula, on the outer side: bone low and far behind
    sides, marrow = set(), []
    for knee in knees:
        bone = knee.label == phantom_knee.BONE
        fibula = bone & (np.arange(64)[:, None] < 24) & (np.arange(64) < 16)
        sides.add(np.sign(world(knee, fibula)[0]))
        marrow.append(core(knee, phantom_knee.BONE) / core(knee, phantom_knee.MUSCLE))
    assert sides == {-1, 1}
    assert min(marrow) < 0.8 and max(marrow) > 1.5


def test_findings_of_the_knee_occur_and_imply_abnormal():
    findings = [knee_phantom(i, 0, (8, 8, 8)).findings for i in range(40)]
    for name in ("acl", "meniscus", "abnormal"):
        assert 3 <= sum(f[name] for f in findings) <= 36
    assert all(f["abnormal"] >= max(f["acl"], f["meniscus"]) for f in findings)


# --- axes and cohorts ---


def test_axes_are_turned_with_a_true_affine():
    phantom = chest_phantom(0, 0, (10, 12, 14))
    turned = on_axes(phantom, "PSR")
    assert nib.aff2axcodes(turned.affine) == ("P", "S", "R")
    place = phantom.affine @ [2, 3, 4, 1]
    index = np.round(np.linalg.solve(turned.affine, place)).astype(int)[:3]
    assert turned.image[tuple(index)] == phantom.image[2, 3, 4]
    assert ras_order((7, 8, 9), "PSR") == (9, 7, 8)


def test_a_cohort_is_a_dataset_that_says_what_it_is(cohort):
    folder, anatomy = cohort
    cases = [case for split in ("training", "validation", "test") for case in load_cases(folder, split)]
    assert len({case["patient_id"] for case in cases}) == 4
    assert len(cases) == (8 if anatomy == "breast" else 4)
    assert json.loads((folder / "dataset.json").read_text())["description"] == PHANTOM_NOTICE
    for case in cases:
        image, label = nib.load(case["image"]), nib.load(case["label"])
        assert image.shape == label.shape == (24, 28, 20)
        data = image.get_fdata()
        assert data.min() == -1 and data.max() == 1
        assert b"not a patient" in image.header["descrip"].tobytes()
        assert nib.aff2axcodes(image.affine) == tuple("PSR" if anatomy == "knee" else "RAS")


def test_a_subject_does_not_depend_on_the_number_of_subjects(cohort, tmp_path):
    folder, anatomy = cohort
    smaller = write_phantom_cohort(tmp_path / "smaller", anatomy, 3, (24, 28, 20))
    for path in (smaller / "images").iterdir():
        np.testing.assert_array_equal(nib.load(path).get_fdata(), nib.load(folder / "images" / path.name).get_fdata())


def test_a_finished_cohort_is_taken_as_it_is_and_another_not_overwritten(cohort):
    folder, anatomy = cohort
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    write_phantom_cohort(folder, anatomy, 4, (24, 28, 20))
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    with pytest.raises(FileExistsError, match="should hold the phantom cohort"):
        write_phantom_cohort(folder, anatomy, 4, (24, 28, 20), seed=1)


def test_both_breasts_of_a_subject_lie_alike_in_one_split(tmp_path):
    folder = write_phantom_cohort(tmp_path / "cohort", "breast", 3, (40, 40, 16))
    for split in ("training", "validation", "test"):
        left, right = load_cases(folder, split)
        assert left["patient_id"] == right["patient_id"]
        for case in (left, right):
            label = np.asarray(nib.load(case["label"]).dataobj) > 0
            assert not label[0].any() or label[0].sum() < 0.2 * label[20].sum()  # the midline is at the first index
    whole = breast_phantom(0, 0, (80, 40, 16), (170 / 40, 170 / 40, 110 / 16), centre=(0, 50, 0))
    for part, expected in (("left", whole.label[39::-1]), ("right", whole.label[40:])):
        np.testing.assert_array_equal(nib.load(folder / "labels" / f"breast_0000_{part}.nii.gz").dataobj, expected)


@pytest.mark.parametrize(
    "change", [{"anatomy": "foot"}, {"num_subjects": 2}, {"size": (8, 8)}, {"spacing": (1, 1)}, {"seed": -1}]
)
def test_a_cohort_that_cannot_be_is_refused_before_anything_is_written(tmp_path, change):
    with pytest.raises(ValueError):
        write_phantom_cohort(tmp_path / "cohort", **{"anatomy": "knee", "num_subjects": 3, "size": (8, 8, 8), **change})
    assert not list(tmp_path.iterdir())
