"""A scale that preparation fixed is kept, whoever reads the volume; without one each volume has its own."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import ScaleIntensity

from medical_diffusion_components.transforms import LoadVolumed, ScaleAsPrepared, ScaleAsPreparedd, VolumeError

CASE = {"intensity_range": [-1.0, 1.0], "window": [-1000.0, 1000.0]}


def volume(low: float, high: float) -> torch.Tensor:
    return torch.linspace(low, high, 120).reshape(1, 4, 5, 6)


def test_without_a_fixed_scale_it_is_the_volumes_own_range_bit_by_bit() -> None:
    found = ScaleAsPreparedd("image", minv=-1, maxv=1)({"image": volume(100, 900)})["image"]
    assert torch.equal(found, ScaleIntensity(minv=-1, maxv=1)(volume(100, 900)))


@pytest.mark.parametrize("top", [-0.3, 0.4, 1.0])
def test_a_fixed_scale_stays_whatever_the_volume_holds(top: float) -> None:
    found = ScaleAsPreparedd("image")({"image": volume(-1, top), **CASE})["image"]
    torch.testing.assert_close(found, volume(-1, top))


def test_written_volumes_and_other_targets_are_mapped_by_the_range_alone() -> None:
    case = {"image": volume(51, 204), **CASE, "intensity_range": [0.0, 255.0]}
    torch.testing.assert_close(ScaleAsPreparedd("image", minv=0, maxv=1)(case)["image"], volume(0.2, 0.8))


def test_a_scan_that_was_not_prepared_is_clipped_to_the_window_of_the_training() -> None:
    found = ScaleAsPrepared(trained_window=[-1000, 1000])(volume(-2000, 500))
    np.testing.assert_allclose(found.numpy(), np.clip(volume(-2000, 500).numpy() / 1000, -1, 1), atol=1e-6)


def test_what_does_not_fit_the_window_is_named() -> None:
    trained = ScaleAsPrepared(trained_window=[-1000, 400])
    with pytest.raises(VolumeError, match=r"expected the window .* got a volume prepared with \[-1000.0, 10"):
        trained(volume(-1, 1), **CASE)
    with pytest.raises(VolumeError, match=r"expected intensities for the window \[-1000, 400\].*got \[-1, 1\]"):
        trained(volume(-1, 1))
    with pytest.raises(VolumeError, match=r"expected intensities in \[-1, 1\], as its dataset.*, got \[-900, 500\]"):
        ScaleAsPrepared()(volume(-900, 500), **CASE)
    assert ScaleAsPrepared(clip=True)(volume(-1.2, 1.3), **CASE).max() == 1


def test_a_file_given_alone_has_the_scale_of_the_data_set_that_lists_it(tmp_path: Path) -> None:
    """As an annotation server gives it: without the case's entries."""
    (tmp_path / "images").mkdir()
    for name in ("listed", "other"):
        nib.save(nib.Nifti1Image(volume(-1, 0)[0].numpy(), np.eye(4)), tmp_path / "images" / f"{name}.nii.gz")
    scale = {"limits_from": "window", "limits": [-1000, 1000], "range": [-2, 2]}
    listing = {"training": [{"image": "images/listed.nii.gz"}], "decided": {"scale": scale}}
    (tmp_path / "dataset.json").write_text(json.dumps(listing))
    found = {}
    for name in ("listed", "other"):
        case = LoadVolumed("image")({"image": str(tmp_path / "images" / f"{name}.nii.gz")})
        scaled = ScaleAsPreparedd("image")(case)
        found[name] = float(scaled["image"].max())
        again = ScaleAsPreparedd("image")(scaled)["image"]
        torch.testing.assert_close(
            again, scaled["image"], msg="the file's own range is not that of what was made of it"
        )
    assert found == {"listed": pytest.approx(0), "other": pytest.approx(1)}


def test_a_volume_that_was_augmented_is_scaled_again_from_the_range_that_it_then_has() -> None:
    case = {"image": volume(51, 204), **CASE, "intensity_range": [0.0, 255.0]}
    scaled = ScaleAsPreparedd("image")(case)
    assert scaled["intensity_range"] == [-1.0, 1.0] and scaled["window"] == CASE["window"]
    brighter = {**scaled, "image": 2 * scaled["image"]}
    found = ScaleAsPreparedd("image", clip=True)(brighter)["image"]
    torch.testing.assert_close(found, (2 * volume(-0.6, 0.6)).clamp(-1, 1))
    assert case["intensity_range"] == [0.0, 255.0], "the case itself is left as it was"
