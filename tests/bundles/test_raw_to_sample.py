"""From a raw download to a synthetic volume, with nothing but the bundle's own configurations in between."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from bundle_folders import REPOSITORY, bundles_with, read, run, tiny
from phantom_downloads import first_cases, write_breast_dicom_tree, write_chest_dicom_tree, write_knee_npy_tree

from medical_diffusion_components.cohorts.template import template_subject
from medical_diffusion_components.preparation.manifests import Manifest, read_manifest, write_manifest

NUM_CASES = 4


def write_brains(root: Path) -> dict:
    """Skull-stripped heads as NIfTI whose axes point elsewhere, off centre and with intensities of their own."""
    for number in range(NUM_CASES):
        subject = template_subject(number, (24, 24, 24))
        image = np.pad((subject.image + 1) * 400, ((3, 6), (0, 2), (5, 1)))
        folder = root / f"subject_{number}"
        folder.mkdir(parents=True)
        flipped = subject.affine @ np.diag([-1.0, 1.0, 1.0, 1.0])
        nib.save(nib.Nifti1Image(image.astype(np.float32), flipped), folder / "scan.nii.gz")
    return {"spacing": [6.0, 6.0, 6.0]}


def from_manifest(root: Path, name: str, write: Callable) -> str:
    """Write the first cases of a committed manifest as phantoms, and the manifest of that download."""
    whole = read_manifest(REPOSITORY / "data_manifests" / f"{name}.json")
    cases = write(root, first_cases(whole.cases, NUM_CASES))
    path = root.with_suffix(".json")
    write_manifest(Manifest(whole.metadata, tuple(cases)), path)
    return str(path)


def write_knees(root: Path) -> dict:
    return {"manifest": from_manifest(root, "mrnet", partial(write_knee_npy_tree, in_plane=32, num_slices=14))}


def write_breasts(root: Path) -> dict:
    write = partial(write_breast_dicom_tree, size=(64, 64, 20), dynamic=False)
    return {"manifest": from_manifest(root, "duke", write), "spacing": [5.0, 5.0, 9.0]}


def write_chests(root: Path) -> dict:
    manifest = from_manifest(root, "lidc_idri", partial(write_chest_dicom_tree, size=(40, 40, 24)))
    return {"manifest": manifest, "spacing": [10.0, 10.0, 10.0], "crop_size": [32, 32, 32]}


RAW = {"adni_ldm": write_brains, "mrnet_ldm": write_knees, "duke_ldm": write_breasts, "lidc_ldm": write_chests}


def test_every_generator_is_tried_from_raw_data_on() -> None:
    """Labelled data are prepared in tests/components/data/test_label_preparation.py."""
    assert {bundle.name for bundle in bundles_with("prepare.yaml", "train_autoencoder.yaml")} == set(RAW)


@pytest.mark.slow
@pytest.mark.parametrize("bundle", [REPOSITORY / "bundles" / name for name in RAW], ids=list(RAW))
def test_a_raw_download_becomes_a_synthetic_volume_with_its_geometry(bundle: Path, tmp_path: Path) -> None:
    raw, prepared = tmp_path / "raw", tmp_path / "prepared"
    overrides = tiny(
        bundle,
        output_dir=str(tmp_path / "output"),
        models_dir=str(tmp_path / "models"),
        autoencoder_batch_size=1,
        autoencoder_epochs=1,
        batch_size=1,
        epochs=1,
        accumulation_steps=1,
    )
    settings = RAW[bundle.name](raw)
    # worker processes would spend most of the test importing
    here = {"executor": {"_target_": "concurrent.futures.ThreadPoolExecutor", "_mode_": "callable", "max_workers": 1}}
    size = overrides["image_size"]
    here["spacing_range"] = [0.1, 30.0]  # phantoms of a few voxels have large ones
    run(bundle, "prepare.yaml", raw_dir=str(raw), dataset_dir=str(prepared), image_size=size, **settings, **here)
    axcodes = read(bundle / "configs" / "train.yaml")["axcodes"]
    volumes = [nib.load(file) for file in sorted((prepared / "images").glob("*.nii.gz"))]
    assert len(volumes) == NUM_CASES * (2 if bundle.name == "duke_ldm" else 1)
    assert {(volume.shape, "".join(nib.aff2axcodes(volume.affine))) for volume in volumes} == {(tuple(size), axcodes)}

    run(bundle, "train.yaml", dataset_dir=str(prepared), **overrides)
    note = json.loads((tmp_path / "models" / "model.json").read_text())
    assert note["data"] == "the user's dataset_dir" and note["notice"] is None
    assert note["cases"]["training"] >= 2  # so many steps of each stage

    run(bundle, "inference.json", samples_dir=str(tmp_path / "samples"), **overrides | {"num_volumes": 1})
    (file,) = (tmp_path / "samples").glob("*.nii.gz")
    sample = nib.load(file)
    assert sample.shape == tuple(size) and "".join(nib.aff2axcodes(sample.affine)) == axcodes
    training = [prepared / case["image"] for case in json.loads((prepared / "dataset.json").read_text())["training"]]
    spacing = np.median([nib.load(path).header.get_zooms() for path in training], axis=0)
    np.testing.assert_allclose(sample.header.get_zooms(), spacing, rtol=1e-4)
    assert np.isfinite(sample.get_fdata()).all() and sample.get_fdata().std() > 0.1
