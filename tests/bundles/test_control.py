"""``train_control.yaml`` and ``pairs.yaml``: a branch for the generator in use, and pairs that a segmentation trains on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_folders import REPOSITORY, for_bundles_with, last_line, read, run, tiny, workflow

from medical_diffusion_components.data import load_cases
from medical_diffusion_components.data.splits import SPLITS
from medical_diffusion_components.files import file_hash
from medical_diffusion_components.weights import load_tensors, save_weights

pytestmark = pytest.mark.slow

controlled = for_bundles_with("train_control.yaml")
one = for_bundles_with("train_control.yaml", at_most=1)


def with_generator(bundle: Path, folder: Path, **overrides) -> dict:
    """Settings with a tiny, untrained generator in ``models``."""
    settings = tiny(bundle, output_dir=str(folder / "output"), models_dir=str(folder / "models"), **overrides)
    cohort = read(bundle / "configs" / "train.yaml")["embedded_cohort"]
    parser = workflow(bundle, "edit.yaml", **settings).parser
    torch.manual_seed(0)
    knobs = {**parser.get_parsed_content("knobs"), "embedded_cohort": cohort}
    note = {"data": "embedded cohort", "knobs": {**knobs, "num_embedded_subjects": 6}}
    save_weights(parser.get_parsed_content("network_def"), folder / "models" / "model.pt", note)
    return settings


@controlled
def test_a_branch_is_trained_and_draws_pairs_from_masks(bundle: Path, tmp_path: Path) -> None:
    settings = with_generator(bundle, tmp_path)
    run(bundle, "train_control.yaml", **settings)
    models = tmp_path / "models"
    note = json.loads((models / "control.json").read_text())
    assert note["generator"] == file_hash(models / "model.pt")
    assert list(note["knobs"]["classes"].values()) == list(range(len(note["knobs"]["classes"])))
    assert len(list((tmp_path / "output" / "control" / "pictures").glob("control_*.png"))) == 1
    (cohort,) = (tmp_path / "output").glob("*cohort*")
    run(bundle, "pairs.yaml", **settings, masks_dir=str(cohort / "labels"))
    pairs = tmp_path / "output" / "pairs"
    listed = json.loads((pairs / "dataset.json").read_text())
    entries = [entry for split in ("training", "validation", "test") for entry in listed[split]]
    assert len(entries) == len(list((cohort / "labels").glob("*"))) and listed["training"] and listed["validation"]
    for entry in entries:
        image, label = (nib.load(pairs / entry[kind]) for kind in ("image", "label"))
        assert image.shape == label.shape == tuple(settings["image_size"])
        np.testing.assert_allclose(image.affine, label.affine)
        said = json.loads((pairs / entry["image"].replace(".nii.gz", ".json")).read_text())
        assert said["synthetic"] is True and said["mask"]["source"] == "given by user"
        assert said["control_sha256"] == file_hash(models / "control.pt")
        assert said["bundle"].startswith(bundle.name)


@one
def test_a_resumed_branch_equals_one_that_was_not_interrupted(bundle: Path, tmp_path: Path) -> None:
    settings = with_generator(bundle, tmp_path)
    run(bundle, "train_control.yaml", **settings | {"epochs": 2})
    straight = load_tensors(tmp_path / "models" / "control.pt")
    shutil.rmtree(tmp_path / "output" / "control")
    run(bundle, "train_control.yaml", **settings)
    run(bundle, "train_control.yaml", **settings | {"epochs": 2})
    resumed = load_tensors(tmp_path / "models" / "control.pt")
    assert json.loads((tmp_path / "models" / "control.json").read_text())["epoch"] == 2
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    said = last_line(bundle, "train_control.yaml", **settings | {"epochs": 2, "control_width": 0.25})
    assert "control_width was 0.5, now 0.25" in said


@one
def test_wrong_masks_and_branches_are_refused_by_name(bundle: Path, tmp_path: Path) -> None:
    settings = with_generator(bundle, tmp_path)
    settings["masks_dir"] = str(tmp_path / "mask.nii")
    nib.save(nib.Nifti1Image(np.full(settings["image_size"], 9, np.uint8), np.eye(4)), settings["masks_dir"])
    assert "expected a control branch at" in last_line(bundle, "pairs.yaml", **settings)
    branch = workflow(bundle, "pairs.yaml", **settings).parser.get_parsed_content("branch")
    save_weights(branch, tmp_path / "models" / "control.pt", {"generator": "another"})
    assert "controls the generator with SHA-256 another" in last_line(bundle, "pairs.yaml", **settings)
    note = {"generator": file_hash(tmp_path / "models" / "model.pt")}
    save_weights(branch, tmp_path / "models" / "control.pt", note)
    assert "mask.nii: expected the labels that were trained" in last_line(bundle, "pairs.yaml", **settings)
    assert not (tmp_path / "output" / "pairs").exists()


@one
def test_pairs_are_taken_by_the_training_of_a_segmentation_as_they_are(bundle: Path, tmp_path: Path) -> None:
    settings = with_generator(bundle, tmp_path)
    classes = {"background": 0, "left half": 1}
    branch = workflow(bundle, "pairs.yaml", **settings, label_classes=classes).parser.get_parsed_content("branch")
    note = {"generator": file_hash(tmp_path / "models" / "model.pt"), "knobs": {"classes": classes}}
    save_weights(branch, tmp_path / "models" / "control.pt", note)
    for number in range(3):
        mask = np.zeros(settings["image_size"], np.uint8)
        mask[2 : 6 + number, 4:20, 2:9] = 1
        (tmp_path / "masks").mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(mask, np.diag([2.8, 2.8, 2.8, 1.0])), tmp_path / "masks" / f"{number}.nii")
    run(bundle, "pairs.yaml", **settings, masks_dir=str(tmp_path / "masks"), volumes_per_mask=2, augment=["elastic"])
    pairs = tmp_path / "output" / "pairs"
    patients = {split: {case["patient_id"] for case in load_cases(pairs, split)} for split in SPLITS}
    assert all(len(found) == 1 for found in patients.values()) and len(set.union(*patients.values())) == 3
    segmentation = REPOSITORY / "bundles" / "swin_unetr_finetune"
    models = tmp_path / "segmentation"
    finetuning = tiny(segmentation, output_dir=str(models), models_dir=str(models)) | {"pad_to_window": True}
    run(segmentation, "train.yaml", **finetuning, dataset_dir=str(pairs), allow_synthetic=True, classes=classes)
    assert json.loads((models / "model.json").read_text())["knobs"]["classes"] == classes
