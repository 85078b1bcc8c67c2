"""Varied cohorts: what differs between subjects, and that plain ones are what they were."""

from __future__ import annotations

import hashlib
import json

import nibabel as nib
import numpy as np
import pytest

from medical_diffusion_components.cohorts.breast import TUMOUR, breast_phantom
from medical_diffusion_components.cohorts.embedded import resolve_dataset
from medical_diffusion_components.cohorts.phantoms import write_phantom_cohort
from medical_diffusion_components.cohorts.template import LESION, template_subject, write_template_cohort
from medical_diffusion_components.cohorts.variation import PLAIN, TEST_BED, Variation, varied_appearance
from medical_diffusion_components.data import load_cases
from medical_diffusion_components.threads import one_thread

BREASTS = (64, 32, 32)
BRAIN = (24, 28, 20)


def test_a_variation_leaves_the_anatomy_as_it_is():
    """Contrast, bias field, noise and blur move no border; lesions cover what was there."""
    appearance = TEST_BED._replace(lesions=0)
    plain, varied, lesions = (breast_phantom(3, 0, BREASTS, variation=v) for v in (PLAIN, appearance, TEST_BED))
    np.testing.assert_array_equal(varied.label, plain.label)
    elsewhere = lesions.label != TUMOUR
    np.testing.assert_array_equal(lesions.label[elsewhere], plain.label[elsewhere])
    assert (plain.label[~elsewhere] > 0).all(), "tumours lie in the breasts"
    with one_thread():
        plain, varied, lesions = (template_subject(3, BRAIN, variation=v) for v in (PLAIN, appearance, TEST_BED))
    np.testing.assert_array_equal(varied.label, plain.label)
    elsewhere = lesions.label != LESION
    np.testing.assert_array_equal(lesions.label[elsewhere], plain.label[elsewhere])
    np.testing.assert_array_equal(varied.image == -1, plain.image == -1)


def test_fat_and_gland_change_their_order_from_subject_to_subject():
    order = set()
    for subject in range(12):
        phantom = breast_phantom(subject, 0, BREASTS, variation=Variation(contrast=0.6))
        fat, gland = (np.median(phantom.image[phantom.label == tissue]) for tissue in (1, 2))
        order.add(bool(fat > gland))
    assert order == {True, False}


def test_tumours_stand_out_from_fat_and_gland():
    """Some are brighter than nearly all of them, the others darker."""
    ranks = []
    for subject in range(10):
        phantom = breast_phantom(subject, 0, (96, 64, 64), variation=Variation(lesions=1, dark=0.5))
        for side in (slice(None, 48), slice(48, None)):
            image, label = phantom.image[side], phantom.label[side]
            if (label == TUMOUR).sum() >= 20:
                tissue = image[(label == 1) | (label == 2)]
                ranks.append((tissue < np.median(image[label == TUMOUR])).mean())
    assert len(ranks) >= 15 and sum(r > 0.85 for r in ranks) >= 4 and sum(r < 0.15 for r in ranks) >= 4
    assert all(not 0.3 < r < 0.7 for r in ranks)


def test_tumours_are_bright_unless_dark_ones_are_asked_for():
    breasts = [breast_phantom(0, 0, BREASTS, variation=Variation(lesions=2, dark=dark)) for dark in (0.0, 1.0)]
    for phantom, bright in zip(breasts, (True, False)):
        tumour, tissue = (phantom.image[np.isin(phantom.label, classes)] for classes in ([TUMOUR], [1, 2]))
        assert bool(np.median(tumour) > np.median(tissue)) is bright
    assert np.array_equal(breasts[0].label, breasts[1].label)


def test_a_breast_has_one_or_two_tumours_and_a_brain_has_lesions(tmp_path):
    folder = write_phantom_cohort(tmp_path / "breasts", "breast", 6, BREASTS, variation=TEST_BED)
    cases = [case for split in ("training", "validation", "test") for case in load_cases(folder, split)]
    voxels = [(np.asarray(nib.load(case["label"]).dataobj) == TUMOUR).sum() for case in cases]
    largest = 2 * 4 / 3 * np.pi * 25**3 / np.prod([170 / 64, 170 / 32, 110 / 32])  # two of radius 25 mm, voxels
    assert len(voxels) == 12 and min(voxels) > 0 and max(voxels) < largest and len(set(voxels)) > 8
    with one_thread():
        assert all((template_subject(i, (32, 32, 32), variation=TEST_BED).label == LESION).any() for i in range(3))


def test_blur_bias_field_and_noise_have_the_size_that_is_asked_for():
    flat = np.full((48, 40, 32), 100.0, np.float32)
    bias = [varied_appearance(np.random.default_rng(i), flat, (1, 1, 1), Variation(bias=0.2)) for i in range(20)]
    assert np.log(np.array(bias) / 100).std() == pytest.approx(0.2, rel=0.3)
    noise = [
        varied_appearance(np.random.default_rng(i), flat, (1, 1, 1), Variation(noise=0.1)).std() for i in range(40)
    ]
    assert max(noise) <= 10.5 and np.mean(noise) == pytest.approx(5, rel=0.3)
    edge = np.repeat([0.0, 100.0], 24)[:, None, None] * np.ones((48, 8, 8), np.float32)
    widths = [
        (
            np.abs(np.diff(varied_appearance(np.random.default_rng(i), edge, (2, 1, 1), Variation(blur=6.0))[:, 4, 4]))
            > 2
        ).sum()
        for i in range(20)
    ]
    assert min(widths) <= 3 and 5 <= max(widths) <= 14  # voxels of 2 mm: sigma up to 3 voxels


def digest(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    volumes = [(p.name, nib.load(p).get_fdata().tobytes() if p.suffix == ".gz" else p.read_bytes()) for p in files]
    whole = hashlib.sha256()
    for name, content in volumes:
        whole.update(name.encode() + content)
    return whole.hexdigest()


def test_a_variation_of_nothing_is_the_plain_cohort(tmp_path):
    """Also on disk: what was written before is taken as it is."""
    for write, more in ((write_template_cohort, ()), (write_phantom_cohort, ("breast",))):
        plain, varied = (tmp_path / f"{write.__name__}_{kind}" for kind in ("plain", "varied"))
        write(plain, *more, 3, BRAIN)
        write(varied, *more, 3, BRAIN, variation=Variation())
        assert digest(plain) == digest(varied)
        assert "variation" not in (plain / "dataset.json").read_text()


def test_a_varied_cohort_is_not_taken_for_the_plain_one(tmp_path):
    folder = write_phantom_cohort(tmp_path / "cohort", "breast", 3, BRAIN)
    with pytest.raises(FileExistsError, match="'variation'"):
        write_phantom_cohort(folder, "breast", 3, BRAIN, variation=TEST_BED)


@pytest.mark.parametrize(("cohort", "last"), [("varied_template", "lesion"), ("varied_breast", "tumour")])
def test_a_bundle_can_name_a_varied_cohort(tmp_path, cohort, last):
    folder = resolve_dataset(None, str(tmp_path), 3, (32, 32, 16), cohort)
    content = json.loads((tmp_path / folder / "dataset.json").read_text())
    labels = content["labels"]
    assert labels[str(len(labels) - 1)] == last
    (parameters,) = (content[key] for key in ("template_cohort", "phantom_cohort") if key in content)
    assert parameters["variation"] == TEST_BED._asdict()


def test_what_cannot_be_varied_is_refused(tmp_path):
    with pytest.raises(ValueError, match="for breasts; got 'knee'"):
        write_phantom_cohort(tmp_path / "knees", "knee", 3, BRAIN, variation=TEST_BED)
    for variation in (Variation(noise=-0.1), Variation(blur=float("nan")), Variation(lesions=1, dark=1.5)):
        with pytest.raises(ValueError, match="expected a variation of numbers of at least 0"):
            breast_phantom(0, 0, BREASTS, variation=variation)
        with pytest.raises(ValueError, match="expected a variation of numbers of at least 0"):
            template_subject(0, BRAIN, variation=variation)
