from __future__ import annotations

import numpy as np
import pytest
import torch

from medical_diffusion_components.transforms.rand_shift import RandShift


def test_every_shift_up_to_the_largest_comes_up_and_borders_are_repeated() -> None:
    image = torch.arange(2 * 5 * 6 * 7, dtype=torch.float32).view(2, 5, 6, 7)
    transform, seen = RandShift(2).set_random_state(seed=0), set()
    padded = np.pad(image.numpy(), [(0, 0), (2, 2), (2, 2), (2, 2)], mode="edge")
    crops = {
        (h, w, d): padded[:, 2 - h : 7 - h, 2 - w : 8 - w, 2 - d : 9 - d]
        for h in range(-2, 3)
        for w in range(-2, 3)
        for d in range(-2, 3)
    }
    for _ in range(60):
        shifted = transform(image).numpy()
        (found,) = [shift for shift, crop in crops.items() if np.array_equal(crop, shifted)]
        seen.add(found)
    assert [{shift[axis] for shift in seen} for axis in range(3)] == [{-2, -1, 0, 1, 2}] * 3


def test_no_shift_by_default() -> None:
    image = torch.rand(1, 3, 4, 5)
    assert RandShift()(image) is image


def test_shifts_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 0 voxels, got -1"):
        RandShift(-1)
    with pytest.raises(ValueError, match=r"\(3, 9, 9\) cannot be shifted by up to 3"):
        RandShift(3)(torch.zeros(1, 3, 9, 9))
