from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medical_diffusion_components.data import load_cases, training_volumes

ADNI = Path(__file__).parents[3] / "bundles" / "adni_ldm"


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """Twelve volumes with voxels of 2, 3 and 5 mm, split by their names."""
    for number in range(12):
        voxels = np.full((3, 4, 5), number, np.float32)
        nib.save(nib.Nifti1Image(voxels, np.diag([2.0, 3.0, 5.0, 1.0])), tmp_path / f"head_{number}.nii.gz")
    return str(tmp_path)


def not_called() -> str:
    raise AssertionError("no files are used")


def test_without_a_generator_both_splits_are_files(folder: str) -> None:
    found = training_volumes(lambda: folder, dataset_dir=folder, num_training=2, axcodes="SAR")
    assert found.training == load_cases(folder, "training")[:2] and len(load_cases(folder, "training")) > 2
    assert found.validation == load_cases(folder, "validation") and found.validation
    assert found.spacing == [5.0, 3.0, 2.0]
    assert found.made_from["cases"]["training"] == len(load_cases(folder, "training"))


def test_with_a_generator_alone_no_files_are_looked_for(small_generator: dict) -> None:
    found = training_volumes(
        not_called, generator=ADNI, generator_settings=small_generator, num_sampled=3, num_sampled_held_out=2, seed=5
    )
    assert (len(found.training), len(found.validation)) == (3, 2)
    assert found.training[0]["image"].shape == (1, 16, 24, 12)
    assert found.spacing == [2.0, 3.0, 4.0]  # of the weights' note
    assert found.made_from["data"].startswith("sampled") and found.made_from["held_out_sha256"] is None


def test_with_both_training_samples_and_validation_reads(small_generator: dict, folder: str) -> None:
    found = training_volumes(
        lambda: folder, folder, generator=ADNI, generator_settings=small_generator, num_sampled=3, axcodes="SAR"
    )
    assert len(found.training) == 3 and found.training[0]["image"].shape == (1, 12, 24, 16)
    assert found.validation == load_cases(folder, "validation")
    assert found.spacing == [5.0, 3.0, 2.0]
    assert found.made_from["data"].startswith("sampled") and found.made_from["held_out_sha256"]
