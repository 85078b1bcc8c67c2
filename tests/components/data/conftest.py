"""Folders of cases, and a generator that is small enough to sample from in a test."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from folders_of_cases import rewrite, write_nifti
from monai.bundle import ConfigParser

from medical_diffusion_components.weights import save_weights

ADNI = Path(__file__).parents[3] / "bundles" / "adni_ldm"
SMALL = {
    "image_size": [16, 24, 12],
    "base_channels": 4,
    "compression": [2, 2, 2],
    "norm_groups": 4,
    "num_codes": 32,
    "denoiser_channels": 8,
    "channel_multipliers": [1, 2],
    "num_train_timesteps": 12,
    "sampler": "ddim",
    "num_inference_steps": 2,
}


@pytest.fixture(scope="module")
def small_generator(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Settings that make ``adni_ldm`` a small generator with random weights."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("generator")
    parser = ConfigParser(ConfigParser.load_config_file(ADNI / "configs" / "inference.json"))
    parser.update(SMALL)
    note = {"data": "embedded template cohort", "notice": "not patients", "spacing": [2.0, 3.0, 4.0]}
    save_weights(parser.get_parsed_content("network_def"), folder / "model.pt", note)
    return {**SMALL, "models_dir": str(folder)}


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """Nine volumes in a folder without a datalist, and what does not count."""
    folder = tmp_path / "plain"
    for i in range(6):
        write_nifti(folder / f"case{i}.nii.gz", i)
    for name in ("site.1/a.nii", "site.1/deep/b.nii.gz", "site.2/a.nii"):
        write_nifti(folder / name)
    write_nifti(folder / ".hidden.nii.gz")
    write_nifti(folder / ".cache" / "c.nii.gz")
    (folder / "notes.txt").write_text("not a volume")
    return folder


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """Five cases of four patients with labels, as `prepare` would write them; a case has a folder of its id."""
    folder = tmp_path / "prepared"
    entries = [
        {"image": f"case{i}/image.nii.gz", "label": f"case{i}/label.nii.gz", "case_id": f"case{i}", "patient_id": p}
        for i, p in enumerate("aabcd")
    ]
    for i, entry in enumerate(entries):
        write_nifti(folder / entry["image"], i)
        write_nifti(folder / entry["label"], i + 10)
    rewrite(folder, training=entries[1::-1], validation=entries[2:3], test=entries[3:])
    return folder
