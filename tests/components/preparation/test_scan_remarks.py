"""A scan of another kind than the network was trained on is remarked on, by its intensities; nothing is changed."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medical_diffusion_components.preparation import RemarkOnScand, modality_remark, trained_modality
from medical_diffusion_components.preparation.scan_remarks import Mixture
from medical_diffusion_components.transforms.volume_error import VolumeError


@pytest.mark.parametrize(
    ("note", "modality"),
    [
        ({"data": "embedded template cohort"}, "MR"),
        ({"data": "embedded varied_breast phantom cohort"}, "MR"),
        ({"data": "embedded chest phantom cohort"}, "CT"),
        ({"data": "the user's dataset_dir", "window": [-1000.0, 400.0]}, "CT"),
        ({"data": "the user's dataset_dir", "window": [0.0, 1200.0]}, None),
        ({"data": "the user's dataset_dir"}, None),
        ({}, None),
    ],
)
def test_what_weights_were_trained_on_is_in_their_note(note: dict, modality: str | None) -> None:
    assert trained_modality(note) == modality


def body(air: float, tissue: float, dtype: type = np.float32) -> np.ndarray:
    """A bright block in air, with noise."""
    volume = np.full((24, 20, 16), air) + np.random.default_rng(0).normal(0, 0.01 * abs(tissue - air), (24, 20, 16))
    volume[5:18, 5:15, 3:12] += tissue - air
    return volume.astype(dtype)


SCANS = {"CT": body(-1000, 40, np.int16), "MR": body(3, 900), "signed MR": body(-50, 700), "scaled": body(-1, 0.9)}


@pytest.mark.parametrize("kind", SCANS)
@pytest.mark.parametrize("trained", ["CT", "MR", None])
def test_a_scan_of_another_kind_is_remarked_on(kind: str, trained: str | None, caplog) -> None:
    image = MetaTensor(torch.from_numpy(np.clip(SCANS[kind], -1024, 1e6).astype(np.float32)[None]))
    image = image.clamp(-1, 1) if kind == "scaled" else image
    odd = trained is not None and kind != "scaled" and (kind == "CT") != (trained == "CT")
    remark = modality_remark(image, trained)
    assert bool(remark) == odd
    if odd:
        assert ("look like a CT's" in remark) == (kind == "CT") and f"trained on {trained}" in remark
    with caplog.at_level(logging.WARNING):
        data = RemarkOnScand("image", trained)({"image": image, "case_id": "a"})
        RemarkOnScand("image", trained)({"image": image, "intensity_range": [0, 1], "window": [0, 1]})
    assert data["image"] is image and len(caplog.records) == int(odd)


def image(size: tuple[int, int, int], mm: float) -> MetaTensor:
    volume = np.random.default_rng(1).normal(50, 20, size).astype(np.float32)
    return MetaTensor(torch.from_numpy(volume[None]), affine=torch.diag(torch.tensor([-mm, mm, 2 * mm, 1.0])))


@pytest.mark.parametrize(
    ("scan", "spacing", "remark"),
    [
        (image((40, 40, 20), 1.0), (2.0, 2.0, 2.0), ""),
        (image((40, 40, 20), 0.2), (2.0, 2.0, 2.0), "it has 4x4x4 voxels, less than half its window of 16x16x8"),
        (image((40, 40, 20), 1.0), (300.0, 300.0, 300.0), "it has 1x1x1 voxels"),
        (image((40, 40, 20), 1.0).round().clamp(0, 4), None, "looks like a label map"),
    ],
)
def test_a_scan_of_another_size_and_a_label_map_are_remarked_on(scan, spacing, remark: str, caplog) -> None:
    RemarkOnScand("image", "MR", spacing, "RAS", (16, 16, 8))({"image": scan})
    assert remark in caplog.text and bool(remark) == bool(caplog.records)


def test_a_scan_that_would_fill_any_memory_is_refused() -> None:
    with pytest.raises(
        VolumeError, match=r"it would have 4000x4000x4000 voxels: expected at most 2\^31; leave --spacing"
    ):
        RemarkOnScand("image", None, (0.01, 0.01, 0.01))({"image": image((40, 40, 20), 1.0)})


def test_the_window_is_compared_along_its_own_axes(caplog) -> None:
    RemarkOnScand("image", None, (2.0, 1.0, 1.0), "SRA", (20, 40, 40))({"image": image((40, 40, 20), 1.0)})
    assert not caplog.records
    RemarkOnScand("image", None, (2.0, 1.0, 1.0), "SRA", (20, 40, 81))({"image": image((40, 40, 20), 1.0)})
    assert "it has 20x40x40 voxels" in caplog.text


def of(kind: str, mm: float = 1.0) -> MetaTensor:
    labels = np.repeat(np.arange(4.0, dtype=np.float32), 6)[:, None, None] * np.ones((24, 20, 16), np.float32)
    voxels = labels if kind == "labels" else SCANS[kind].astype(np.float32)
    return MetaTensor(
        torch.from_numpy(np.maximum(voxels, -1024))[None], affine=torch.diag(torch.tensor([mm, mm, mm, 1]))
    )


@pytest.mark.parametrize(
    ("volumes", "remark"),
    [
        ([of("MR"), of("MR")], None),
        ([of("CT"), of("CT")], None),
        ([of("scaled"), of("scaled", 1.2)], None),
        (
            [of("MR"), of("CT"), of("MR")],
            "1 of 3 volumes are in Hounsfield units, as CT is, the first is v1; the others",
        ),
        ([of("CT"), of("labels")], "1 of 2 volumes look like label maps, the first is v1: they count as images here"),
        ([of("MR"), of("MR", 3.0)], "several sizes, such as v0 1 x 1 x 1 mm and v1 3 x 3 x 3 mm: a network learns in"),
        ([], None),
    ],
)
def test_a_mixture_of_kinds_is_remarked_on(volumes: list, remark: str | None) -> None:
    mixture = Mixture()
    for number, volume in enumerate(volumes):
        mixture.look(f"v{number}", volume)
    found = mixture.remarks()
    assert len(found) == (remark is not None) and (remark is None or remark in found[0])
