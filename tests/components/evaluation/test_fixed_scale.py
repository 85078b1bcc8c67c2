"""A window that preparation fixed is the same for held-out, synthetic and reconstructed volumes."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose

from medical_diffusion_components.data import load_cases
from medical_diffusion_components.evaluation import AnatomySpace, FeatureReader, folder_cases, write_reconstructions
from medical_diffusion_components.transforms import LoadVolumed, ScaleAsPreparedd, SpacingAffine

WINDOW = [-1000.0, 1000.0]


class Identity(torch.nn.Module):
    """A first stage without loss."""

    def encode_stage_2_inputs(self, volume: torch.Tensor) -> torch.Tensor:
        return volume

    def decode_stage_2_outputs(self, latent: torch.Tensor) -> torch.Tensor:
        return latent


def write(path: Path, low: float, high: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    volume = np.linspace(low, high, 4 * 5 * 6, dtype=np.float32).reshape(4, 5, 6)
    nib.save(nib.Nifti1Image(volume, np.eye(4)), path)


@pytest.fixture
def reader(tmp_path: Path) -> FeatureReader:
    read = Compose([LoadVolumed("image"), ScaleAsPreparedd("image")])
    return FeatureReader(read, "", {"anatomy": AnatomySpace()}, tmp_path / "features")


def limits(volume: torch.Tensor) -> list[float]:
    return [round(float(volume.min()), 3), round(float(volume.max()), 3)]


def test_every_set_keeps_it(reader: FeatureReader, tmp_path: Path) -> None:
    splits = ("training", "validation", "test")
    for split in splits:
        write(tmp_path / "prepared" / f"{split}.nii.gz", -0.5, 0.25)
    scale = {"limits_from": "window", "limits": WINDOW, "range": [-1.0, 1.0]}
    listing = {split: [{"image": f"{split}.nii.gz"}] for split in splits} | {"decided": {"scale": scale}}
    (tmp_path / "prepared" / "dataset.json").write_text(json.dumps(listing))
    held_out = load_cases(tmp_path / "prepared", "test")
    assert limits(reader.volume(held_out[0])) == [-0.5, 0.25]

    weights = tmp_path / "model.pt"
    weights.write_bytes(b"for its hash alone")
    affine = SpacingAffine(spacing=[1.0, 1.0, 1.0], axcodes="RAS")
    made = write_reconstructions(held_out, Identity(), weights, reader.volume, "", tmp_path / "again", affine)
    assert limits(reader.volume(made[0])) == [-0.5, 0.25]


def test_synthetic_volumes_of_a_folder_have_the_one_in_their_note(reader: FeatureReader, tmp_path: Path) -> None:
    note = {"weights_sha256": "0", "window": WINDOW, "intensity_range": [0.0, 255.0]}
    for name, content in (("fixed", note), ("free", {"weights_sha256": "0"})):
        write(tmp_path / name / "synthetic_0.nii.gz", 0.0, 127.5)
        (tmp_path / name / "synthetic_0.json").write_text(json.dumps(content))
    fixed, free = ([case] for name in ("fixed", "free") for case in folder_cases(tmp_path / name))
    assert limits(reader.volume(fixed[0])) == [-1, 0]
    assert limits(reader.volume(free[0])) == [-1, 1]
    one, other = (reader(cases, "")["quantiles"] for cases in (fixed, free))
    assert not np.allclose(one, other), "the cache tells the two readings of one file apart"
