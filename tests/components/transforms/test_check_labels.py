from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose

from medical_diffusion_components.transforms.check_labels import CheckLabels, CheckLabelsd
from medical_diffusion_components.transforms.volume_error import VolumeError

CLASSES = {"background": 0, "grey matter": 1, "white matter": 2}
SIZE = (1, 10, 20, 30)


def volume(values: torch.Tensor, name: str, affine: np.ndarray | None = None) -> MetaTensor:
    affine = np.diag([2.0, 1.0, 3.0, 1.0]) if affine is None else affine
    return MetaTensor(values, affine=torch.as_tensor(affine), meta={"filename_or_obj": name})


def label(**changed) -> MetaTensor:
    values = torch.zeros(SIZE)
    values[:, 3:6, 4:9, 5:20] = 1
    values[:, 5:8, 9:12, 7:9] = 2
    for value, voxels in changed.pop("put", {}).items():
        values[0, 0, 0, :voxels] = value
    return volume(values, "label.nii.gz", **changed)


def image(size: tuple = SIZE) -> MetaTensor:
    return volume(torch.rand(size), "image.nii.gz")


def test_a_label_that_fits_comes_back_as_it_was() -> None:
    fitting = label()
    assert CheckLabels(CLASSES)(fitting, image()) is fitting


def test_a_healthy_case_has_a_label_of_background_alone() -> None:
    empty = volume(torch.zeros(SIZE), "label.nii.gz")
    assert CheckLabels(CLASSES)(empty, image()) is empty


def test_what_counts_is_the_shortest_side_of_a_voxel_in_an_oblique_scan() -> None:
    """Voxels of 0.1 x 5 x 5 mm, turned by 45 degrees: no row of the affine is short."""
    turn = np.array([[1.0, -1, 0], [1, 1, 0], [0, 0, np.sqrt(2)]]) / np.sqrt(2)
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([0.1, 5.0, 5.0])
    elsewhere = affine + 0.0
    elsewhere[2, 3] = 0.05  # mm, half a voxel
    scan = volume(torch.rand(SIZE), "image.nii.gz", affine)
    with pytest.raises(VolumeError, match=r"up to 0\.05 mm apart \(voxels of 0\.1 mm\)"):
        CheckLabels(CLASSES)(label(affine=elsewhere), scan)


def test_rounding_in_the_headers_is_no_other_grid() -> None:
    affine = np.diag([2.0, 1.0, 3.0, 1.0]) + 1e-4
    CheckLabels(CLASSES)(label(affine=affine), image())


@pytest.mark.parametrize(
    "wrong, told",
    [
        (label(put={3: 4}), r"outside the expected classes \{0: background, 1: grey.*, 2: white.*\}: 3 \(4 voxels\)"),
        (label(put={-1: 2}), r"-1 \(2 voxels\)"),
        (label(put={0.5: 7}), "whole numbers, got 0.5: was it resampled"),
        (label(put={1 + 2.0**-23: 7}), "whole numbers, got 1.00000012"),
        (label(put={float("nan"): 7}), "whole numbers, got nan"),
        (label(put={float("inf"): 7}), "whole numbers, got inf"),
        (volume(torch.ones(1, 10, 20, 29), "label.nii.gz"), r"10x20x29 voxels, its image image\.nii\.gz has 10x20x30"),
        (volume(torch.ones(2, 10, 20, 30), "label.nii.gz"), r"expected one label map \(1, H, W, D\), got shape \(2, 10,"),
        (label(affine=np.diag([2.0, 1.0, 3.3, 1.0])), "corners are up to 8.7 mm apart"),
        (label(affine=np.array([[2.0, 0, 0, 0.15], [0, 1, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1]])), "up to 0.15 mm apart"),
        (label(affine=np.diag([-2.0, 1.0, 3.0, 1.0])), r"lies elsewhere than its image image\.nii\.gz"),
    ],
)  # fmt: skip
def test_a_label_that_does_not_fit_is_named(wrong: MetaTensor, told: str) -> None:
    with pytest.raises(VolumeError, match=rf"^label\.nii\.gz: .*{told}"):
        CheckLabels(CLASSES)(wrong, image())


@pytest.mark.parametrize(
    "classes",
    [
        *({"breast": 1}, {"background": 0}, {"background": 0, "breast": 2}, {}),
        *(["background", "breast"], {0: "background", 1: "breast"}, {"background": "0", "breast": "1"}),
        {"background": False, "breast": True},
    ],
)
def test_classes_that_are_no_names_with_numbers_or_have_gaps_are_refused(classes: Any) -> None:
    with pytest.raises(ValueError, match=r"names with their numbers, {background: 0, .* without gaps, got"):
        CheckLabels(classes)


def test_the_case_is_named_and_the_cause_survives_compose() -> None:
    check = Compose([CheckLabelsd("label", image_key="image", classes=CLASSES)])
    with pytest.raises(RuntimeError, match=r"CheckLabelsd: case 17: label\.nii\.gz: label values must be") as error:
        check({"image": image(), "label": label(put={0.5: 7}), "case_id": "17"})
    assert isinstance(error.value.__cause__, VolumeError)
