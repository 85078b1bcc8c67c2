"""An evaluation says that volumes are turned against the training ones, unless training mirrors them that way itself."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from medical_diffusion_components.evaluation import AnatomySpace, GeneratorEvaluation, VolumeSet

SIZE = (20, 36, 36)  # blocks of 2, 3 and 3 voxels


def bodies(count: int, first: int = 0) -> torch.Tensor:
    """A bright block nearer to one end of each axis, of another texture in each volume, (N, 1, 20, 36, 36)."""
    volumes = -torch.ones(count, 1, *SIZE)
    for number, volume in enumerate(volumes):
        texture = gaussian_filter(np.random.default_rng(first + number).normal(size=(14, 15, 21)), 1)
        volume[0, 4:18, 3:18, 12:33] = torch.from_numpy(0.5 + 0.5 * texture)
    return volumes


def as_set(name: str, volumes: torch.Tensor) -> VolumeSet:
    features = {"anatomy": np.stack([AnatomySpace()(volume) for volume in volumes])}
    return VolumeSet(name, np.arange(len(volumes)), features, {})


@pytest.mark.parametrize(
    ("turn", "said"),
    [
        (lambda some: some, None),
        (lambda some: some.flip(2), None),  # left and right, which training exchanges
        (
            lambda some: some.flip(3),
            "6 of 6 synthetic volumes resemble the training volumes far better mirrored along W ",
        ),
        (
            lambda some: -some,
            "6 of 6 synthetic volumes resemble the training volumes far better with inverted intensities",
        ),
        (lambda some: some.transpose(3, 4), "6 of 6 synthetic volumes resemble .* far better with the axes HDW"),
    ],
)
def test_volumes_that_lie_otherwise_than_in_training_are_remarked_on(
    turn: Any, said: str | None, tmp_path: Path
) -> None:
    training, drawn = bodies(12), turn(bodies(6, first=20))
    cases = [{"image": f"{number}.nii.gz", "patient_id": number} for number in range(12)]
    reader: Any = SimpleNamespace(spaces={"anatomy": AnatomySpace()}, volume=lambda case: training[case["patient_id"]])
    made = GeneratorEvaluation(reader, cases, cases, list, tmp_path, {}, flip_axis=0)  # with a page or without one
    sets = {"baseline": drawn, "training": training, "synthetic": drawn}
    remarks = made.remarks_on_turned({name: as_set(name, volumes) for name, volumes in sets.items()})
    if said is None:
        assert remarks == []
    else:
        assert len(remarks) == 2 and re.match(said, remarks[0]) and " baseline volumes " in remarks[1]
