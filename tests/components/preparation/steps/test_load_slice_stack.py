from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from medical_diffusion_components.preparation.steps.load_slice_stack import LoadSliceStack
from medical_diffusion_components.transforms.volume_error import VolumeError


def stored(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    return tmp_path / "a.npy"


def test_columns_run_along_h_rows_upwards_along_w_and_slices_along_d(tmp_path):
    slices = np.random.default_rng(0).integers(0, 255, (5, 7, 11), dtype=np.uint8)
    out = LoadSliceStack((0.5, 0.5, 4.0), "PSR")(stored(tmp_path, slices))
    assert out.shape == (1, 11, 7, 5)
    for slice_, row, column in ((0, 0, 0), (4, 2, 9), (3, 6, 1)):
        assert out[0, column, 6 - row, slice_] == slices[slice_, row, column]


def test_the_axes_point_where_they_are_said_to_and_the_world_starts_in_the_middle(tmp_path):
    out = LoadSliceStack((0.5, 0.6, 4.0), "PSR")(stored(tmp_path, np.zeros((5, 7, 11))))
    affine = np.asarray(out.affine)
    assert nib.aff2axcodes(affine) == ("P", "S", "R")
    np.testing.assert_allclose(affine @ [5, 3, 2, 1], [0, 0, 0, 1])
    np.testing.assert_allclose(affine @ [6, 4, 3, 1], [4.0, -0.5, 0.6, 1])  # right, posterior, superior


@pytest.mark.parametrize("array", [np.zeros((4, 5)), np.zeros((2, 3, 4, 5)), np.zeros((2, 3, 4), complex)])
def test_what_is_no_stack_of_slices_is_refused(tmp_path, array):
    with pytest.raises(VolumeError, match=r"expected real numbers \(slices, rows, columns\)"):
        LoadSliceStack((1, 1, 1), "PSR")(stored(tmp_path, array))


def test_a_file_cut_short_or_holding_objects_is_refused(tmp_path):
    path = stored(tmp_path, np.zeros((5, 7, 11)))
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(VolumeError, match="cannot be read"):
        LoadSliceStack((1, 1, 1), "PSR")(path)
    np.save(path, np.array([{}, 1], dtype=object), allow_pickle=True)
    with pytest.raises(VolumeError, match="cannot be read"):
        LoadSliceStack((1, 1, 1), "PSR")(path)


@pytest.mark.parametrize("axcodes", ["PSP", "PS", "XYZ", "RLA"])
def test_axcodes_that_do_not_span_the_world_are_refused(axcodes):
    with pytest.raises(ValueError, match="axcodes"):
        LoadSliceStack((1, 1, 1), axcodes)
