from __future__ import annotations

from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest

from medical_diffusion_components.orientation import to_ras, world_axes

ALL = ["".join(letters) for axes in permutations(("LR", "PA", "IS")) for letters in product(*axes)]


@pytest.mark.parametrize("axcodes", ALL)
def test_axes_are_those_of_nibabel_for_all_48_orientations(axcodes):
    np.testing.assert_array_equal(np.array(world_axes(axcodes)), nib.orientations.axcodes2ornt(axcodes))


@pytest.mark.parametrize("axcodes", ["PSR", "ILA"])
def test_turned_volume_is_that_of_nibabels_closest_canonical_image(axcodes):
    volume = np.random.default_rng(0).normal(size=(3, 4, 5))
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for column, code in enumerate(axcodes):
        axis = ("LR", "PA", "IS").index(next(pair for pair in ("LR", "PA", "IS") if code in pair))
        affine[axis, column] = 2.0 if code in "RAS" else -2.0
    image = nib.as_closest_canonical(nib.Nifti1Image(volume, affine))
    np.testing.assert_array_equal(to_ras(volume, axcodes), image.get_fdata())


@pytest.mark.parametrize("axcodes", ["", "RA", "RAA", "RASS", "ras", "XYZ"])
def test_letters_that_name_no_axes_are_errors(axcodes):
    with pytest.raises(ValueError, match="one each of R or L, A or P, S or I"):
        world_axes(axcodes)
