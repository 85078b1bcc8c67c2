from __future__ import annotations

import functools
import pickle

import numpy as np
import pytest
from monai.transforms import Compose, RandFlipd, ResizeWithPadOrCropd

from medical_diffusion_components.preparation.settings import describe, settings_hash
from medical_diffusion_components.preparation.steps.crop_to_cube import CropToCubed
from medical_diffusion_components.preparation.steps.resample import Resampled
from medical_diffusion_components.preparation.steps.scale_to_range import ScaleToRanged


def steps(size=(6, 5, 4), value=-1000.0, threshold=0.0):
    return [
        Resampled("image", size=size),
        ResizeWithPadOrCropd("image", size, value=value),
        CropToCubed("image", threshold=threshold),
        ScaleToRanged("image"),
    ]


def test_the_same_settings_give_the_same_hash_in_every_copy():
    assert settings_hash(steps()) == settings_hash(steps()) == settings_hash(pickle.loads(pickle.dumps(steps())))


@pytest.mark.parametrize("changed", [{"size": (6, 5, 5)}, {"value": -1001.0}, {"threshold": 0.1}])
def test_any_changed_setting_changes_the_hash(changed):
    assert settings_hash(steps(**changed)) != settings_hash(steps())


def test_the_order_of_the_steps_counts():
    assert settings_hash(steps()[::-1]) != settings_hash(steps())


def test_what_a_transform_went_through_does_not_count():
    used = steps()
    used[0].failure = "an earlier case"
    assert settings_hash(used) == settings_hash(steps())
    flip = RandFlipd("image", prob=0.5)
    before = settings_hash([flip])
    flip.set_random_state(3)
    assert settings_hash([flip]) == before


def test_functions_count_by_what_they_do():
    def scale(factor):
        return lambda x: x * factor

    assert describe(scale(2)) == describe(scale(2)) != describe(scale(3))
    assert describe(lambda x: x + 1) != describe(lambda x: x - 1)
    assert describe(functools.partial(np.mean, axis=0)) != describe(functools.partial(np.mean, axis=1))
    assert describe(Compose([np.abs])) != describe(Compose([np.mean]))


def test_arrays_count_by_their_values():
    assert describe(np.arange(3)) == describe(np.arange(3)) != describe(np.arange(3) + 1)
