from __future__ import annotations

from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest

from medical_diffusion_components.orientation import to_ras, world_axes

CODES = ["".join(code) for ends in permutations(("LR", "PA", "IS")) for code in product(*ends)]


@pytest.mark.parametrize("axcodes", CODES)
def test_axes_and_their_turning_are_those_of_nibabel(axcodes):
    np.testing.assert_array_equal(world_axes(axcodes), nib.orientations.axcodes2ornt(tuple(axcodes)))
    volume = np.random.default_rng(0).random((4, 5, 6))
    affine = np.eye(4)
    affine[:3, :3] = 0
    for column, (axis, sign) in enumerate(world_axes(axcodes)):
        affine[axis, column] = sign
    expected = nib.as_closest_canonical(nib.Nifti1Image(volume, affine)).get_fdata()
    np.testing.assert_array_equal(to_ras(volume, axcodes), expected)


@pytest.mark.parametrize("axcodes", ["", "RA", "RAX", "RLS", "RASR", "ras"])
def test_letters_that_name_no_three_axes_are_refused(axcodes):
    with pytest.raises(ValueError, match="one each of R or L, A or P, S or I"):
        world_axes(axcodes)
