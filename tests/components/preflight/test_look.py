"""What is seen of a volume: which way it lies, and where its planes are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from folders_to_check import head
from monai.data import MetaTensor
from scipy.spatial.transform import Rotation

from medical_diffusion_components.preflight.look import TILE, likeness, look_at, turned


def seen(volume, affine=None, axcodes="RAS"):
    affine = np.eye(4) if affine is None else affine
    return look_at(MetaTensor(torch.from_numpy(np.ascontiguousarray(volume))[None].float(), affine=affine), axcodes)


@pytest.mark.parametrize("axes", [(0, 2), (1, 2), (0, 1)])
@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_turned_head_is_named_whichever_way_it_lies(axes, quarters):
    looks = {str(seed): seen(head(seed)) for seed in range(8)}
    assert turned(looks) == {}
    looks["odd"] = seen(np.rot90(head(9), quarters, axes))
    assert turned(looks).keys() == {"odd"}
    assert likeness(looks)["odd"] == min(likeness(looks).values())


def test_the_turns_are_those_of_a_cube():
    from medical_diffusion_components.preflight.look import _turns

    cube = np.arange(27).reshape(3, 3, 3)
    turns = {turn.tobytes() for turn in map(np.ascontiguousarray, _turns(cube))}
    group = {tuple(map(tuple, r.as_matrix().round().astype(int))) for r in Rotation.create_group("O")}
    assert len(turns) == len(group) - 1 == 23 and cube.tobytes() not in turns


def test_planes_are_the_middle_ones_upright_and_in_proportion():
    volume = np.zeros((10, 20, 40), dtype=np.float32)  # right, front, up; 4 x 2 x 1 mm: a cube of 40 mm
    volume[:, 15:, 30:] = 100.0  # in front and above
    sagittal, coronal, axial = seen(volume, np.diag([4.0, 2.0, 1.0, 1.0])).planes
    assert sagittal.shape == coronal.shape == axial.shape == (TILE, TILE)
    bright = np.argwhere(sagittal > 128)
    assert bright[:, 0].max() <= TILE // 4 and bright[:, 1].min() >= TILE * 3 // 4 - 1, "up is on top, front is right"
    assert not coronal.any() and not axial.any(), "their middle slices miss it"
