"""Limits of structures are those of the training's masks; specks and holes go, and what lies beyond the limits is said."""

from __future__ import annotations

import numpy as np
import pytest

from medical_diffusion_components.control import cleaned, implausible, structure_limits

CLASSES = {"background": 0, "organ": 1, "lesion": 2}


def labels(lesions: int = 1, side: int = 6) -> np.ndarray:
    volume = np.zeros((12, 10, 9), np.uint8)
    volume[1 : 1 + side, 1:9, 1:8] = 1
    for number in range(lesions):
        volume[2:4, 2 + 3 * number : 4 + 3 * number, 2:4] = 2
    return volume


@pytest.fixture
def limits() -> dict:
    return structure_limits([labels(1), labels(2, side=8)], CLASSES)


def test_limits_are_those_of_the_masks_rounded_with_a_quarter_more(limits: dict) -> None:
    # lesions: 8 and 16 voxels, in one and in two parts of 8; organ: 6 and 8 times 56 voxels less the lesions
    assert limits["lesion"] == {"voxels": [6, 20], "parts": 2, "smallest_part": 4}
    assert limits["organ"] == {"voxels": [260, 540], "parts": 1, "smallest_part": 164}
    assert limits["background"]["parts"] == 1


def test_a_speck_of_the_training_does_not_make_specks_allowed() -> None:
    spoilt = labels(2)
    spoilt[11, 9, 8] = 1  # far less than a hundredth of the organ
    assert structure_limits([spoilt], CLASSES)["organ"]["smallest_part"] == 160


def test_islands_and_holes_take_the_class_around_them(limits: dict) -> None:
    drawn = labels(1)
    drawn[10, 5, 5] = 1  # an island in the background
    drawn[5, 6, 6] = 0  # a hole in the organ
    drawn[5, 7, 2:4] = 2  # a lesion too small
    clean = cleaned(drawn, limits, CLASSES)
    np.testing.assert_array_equal(clean.labels, labels(1))
    assert clean.changed == pytest.approx(4 / drawn.size)


def test_a_mask_of_specks_alone_stays_for_others_to_refuse(limits: dict) -> None:
    specks = np.indices((4, 4, 4)).sum(0) % 3
    clean = cleaned(specks.astype(np.uint8), limits, CLASSES)
    np.testing.assert_array_equal(clean.labels, specks)
    assert clean.changed == 0 and implausible(clean.labels, limits, CLASSES)


def test_a_clean_mask_stays_as_it_is(limits: dict) -> None:
    clean = cleaned(labels(2), limits, CLASSES)
    np.testing.assert_array_equal(clean.labels, labels(2))
    assert clean.changed == 0 and implausible(clean.labels, limits, CLASSES) == []


def test_what_is_unlike_the_training_is_said(limits: dict) -> None:
    assert implausible(labels(0), limits, CLASSES) == ["lesion: fewer voxels than in training"]
    three = labels(2)
    three[2:4, 2:4, 5:7] = 2
    assert implausible(three, limits, CLASSES) == [
        "lesion: more voxels than in training",
        "lesion: more parts than in training",
    ]
    assert implausible(np.zeros((12, 10, 9), np.uint8), limits, CLASSES)[1:] == [
        "organ: fewer voxels than in training",
        "lesion: fewer voxels than in training",
    ]


def test_a_structure_that_some_masks_lack_may_be_lacking() -> None:
    limits = structure_limits([labels(0), labels(1)], CLASSES)
    assert limits["lesion"] == {"voxels": [0, 10], "parts": 1, "smallest_part": 4}
    assert implausible(labels(0), limits, CLASSES) == []
