"""Label maps of many kinds are told from pictures of many kinds."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from medical_diffusion_components.data.label_maps import is_label_file, looks_like_labels

SHAPE = (40, 36, 32)
PLACE = np.indices(SHAPE)


def picture(seed=0, levels=1000):
    smooth = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=SHAPE), 3)
    head = sum(((axis - n / 2) / (0.4 * n)) ** 2 for axis, n in zip(PLACE, SHAPE)) < 1
    return np.round(head * (1 + smooth / np.abs(smooth).max()) / 2 * levels)


def parcels(size):
    numbers = np.ravel_multi_index(PLACE // size, [n // size + 1 for n in SHAPE]) + 1
    return numbers * (picture() > 0)


LABELS = {
    "a thin sheet": PLACE.sum(0) == 50,
    "one voxel": PLACE.sum(0) == 0,
    "an empty mask": np.zeros(SHAPE),
    "regions of halves": 0.5 * (PLACE // 20).sum(0),
    "255 for inside": 255 * (picture() > 300),
    "few large labels": 1000 * (PLACE[0] // 10),
    "a parcellation of hundreds": parcels(5),
}
PICTURES = {
    "8 bits": picture(levels=255),
    "12 bits": picture(levels=4095),
    "real numbers": picture() / 7 + 0.1,
    "5 bits": picture(levels=31) + np.random.default_rng(1).integers(0, 2, SHAPE),
    "air cut off at -1000": np.maximum(picture(levels=1400) - 1300, -1000) + (picture() > 0) * picture(1, 300),
}


@pytest.mark.parametrize("name", LABELS)
def test_a_label_map_is_one_whatever_its_labels(name):
    assert looks_like_labels(LABELS[name].astype(np.float32)[None])


@pytest.mark.parametrize(("highest", "expected"), [(1.0, True), (1.5, False)])
def test_a_file_named_like_probabilities_is_a_label_map_if_it_holds_some(highest, expected, tmp_path):
    nib.save(nib.Nifti1Image((picture() / 1000 * highest).astype(np.float32), np.eye(4)), tmp_path / "a_probmap.nii")
    assert is_label_file(tmp_path / "a_probmap.nii") is expected


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_none_however_few_its_intensities(name):
    assert not looks_like_labels(PICTURES[name].astype(np.float32)[None])
