"""Radiomic features against values by hand, and as a space of an evaluation."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_laplace

from medical_diffusion_components.evaluation import Comparison, RadiomicsSpace, VolumeSet
from medical_diffusion_components.evaluation.radiomics import BIN_WIDTH, SCALE

pytest.importorskip("numpyradiomics", reason="the extra `evaluation` is not installed")


def volume(seed: int, shape: tuple[int, int, int] = (5, 6, 7)) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).uniform(-1, 1, (1, *shape)))


def bins(image: np.ndarray) -> np.ndarray:
    """Grey tones from 1, of fixed width, the first one's edge a multiple of it."""
    return (np.floor(image / BIN_WIDTH) - np.floor(image.min() / BIN_WIDTH)).astype(int) + 1


def co_occurrences(tones: np.ndarray, offset: tuple[int, int, int]) -> np.ndarray:
    """Joint distribution of the tones of voxels that lie ``offset`` apart, both ways, by a loop over voxels."""
    levels = tones.max()
    found = np.zeros((levels, levels))
    for place in np.ndindex(tones.shape):
        other = tuple(np.add(place, offset))
        if all(0 <= index < side for index, side in zip(other, tones.shape)):
            found[tones[place] - 1, tones[other] - 1] += 1
            found[tones[other] - 1, tones[place] - 1] += 1
    return found / found.sum()


def test_five_features_are_those_of_their_definitions() -> None:
    one = volume(0)
    found, image = RadiomicsSpace().named(one), (one[0].numpy() + 1) / 2 * SCALE
    assert found["original/firstorder/Energy"] == pytest.approx((image**2).sum())
    shares = np.bincount(bins(image).ravel())[1:] / image.size
    shares = shares[shares > 0]
    assert found["original/firstorder/Entropy"] == pytest.approx(-(shares * np.log2(shares)).sum())
    deviation = image - image.mean()
    assert found["original/firstorder/Skewness"] == pytest.approx((deviation**3).mean() / image.var() ** 1.5)

    offsets = [offset for offset in np.ndindex(3, 3, 3) if offset > (1, 1, 1)]  # half of the 26 neighbours
    joint = [co_occurrences(bins(image), tuple(np.subtract(offset, 1))) for offset in offsets]
    i, j = np.indices(joint[0].shape)
    assert found["original/glcm/Contrast"] == pytest.approx(np.mean([((i - j) ** 2 * p).sum() for p in joint]))
    assert found["original/glcm/JointEnergy"] == pytest.approx(np.mean([(p**2).sum() for p in joint]))


def test_textures_of_the_laplacian_of_gaussian_are_there_as_well() -> None:
    one = volume(1)
    found, image = RadiomicsSpace((1.5,)).named(one), (one[0].numpy() + 1) / 2 * SCALE
    assert found["log_1.5/firstorder/Mean"] == pytest.approx(gaussian_laplace(image, 1.5).mean())
    assert {name.split("/")[1] for name in found} == {"firstorder", "glcm", "glrlm", "ngtdm"}
    space = RadiomicsSpace((1.5,))
    np.testing.assert_array_equal(space(one), list(found.values()))
    assert np.isfinite(space(torch.full((1, 4, 4, 4), -1.0))).all(), "skewness of an empty volume is not defined"


def test_no_feature_with_a_large_unit_speaks_for_all() -> None:
    rng = np.random.default_rng(0)

    def some(name: str, shift: float) -> VolumeSet:
        features = rng.normal((0.0, shift), size=(30, 2))
        found = {"radiomics": features * [1e9, 1.0]}  # an energy and a contrast
        rest = {f"{kind}_{axis}": rng.uniform(1, 2, (30, 8)) for kind in ("continuity", "power") for axis in range(3)}
        return VolumeSet(
            name, np.arange(30), found | rest | dict.fromkeys(("quantiles", "radial"), np.ones((30, 8))), {}
        )

    same, moved = some("same", 0.0), some("moved", 5.0)
    comparison = Comparison(some("reference", 0.0), some("training", 0.0), {"radiomics": RadiomicsSpace()}, 9)
    near, far = (comparison.between(one)["radiomics"]["kid"] for one in (same, moved))
    assert abs(near["value"] - near["floor"]) < 3 * near["floor_sd"]
    assert far["value"] - far["floor"] > 10 * far["floor_sd"]


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numpyradiomics", None)
    with pytest.raises(ImportError, match=r"medical-diffusion-bundles\[evaluation\]"):
        RadiomicsSpace()
