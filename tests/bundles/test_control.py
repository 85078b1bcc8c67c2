"""``train_control.yaml``, ``train_masks.yaml`` and what they are for: pairs, from given and from synthesised masks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_folders import (
    BUNDLES,
    REPOSITORY,
    for_bundles_with,
    for_each_kind_with,
    last_line,
    read,
    run,
    tiny,
    workflow,
)

from medical_diffusion_components.cohorts.template import template_subject
from medical_diffusion_components.data import load_cases
from medical_diffusion_components.data.splits import SPLITS
from medical_diffusion_components.files import file_hash
from medical_diffusion_components.networks import ScriptableSwinUNETR
from medical_diffusion_components.threads import one_thread
from medical_diffusion_components.weights import load_tensors, save_weights

pytestmark = pytest.mark.slow

controlled = for_each_kind_with("train_control.yaml")
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
    assert list(note["structures"]) == list(note["knobs"]["classes"])
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
    settings = with_generator(bundle, tmp_path, learning_rate=1e-2)  # so that the second epoch is the better one
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


@pytest.mark.parametrize(
    "bundle", [b for b in BUNDLES if (b / "released" / "control.pt").is_file()], ids=lambda bundle: bundle.name
)
def test_a_released_branch_draws_pairs_with_the_released_generator(bundle: Path, tmp_path: Path) -> None:
    """As after a clone: no weights are named, and there are none of one's own."""
    shutil.copytree(bundle, clone := tmp_path / bundle.name, ignore=shutil.ignore_patterns("models", "output", "demo"))
    with one_thread():
        subject = template_subject(500)  # after those of the training
    nib.save(nib.Nifti1Image(subject.label, subject.affine), tmp_path / "mask.nii.gz")
    settings = {"masks_dir": str(tmp_path), "output_dir": str(tmp_path / "output"), "num_inference_steps": 2}
    printed = run(clone, "pairs.yaml", **settings)
    assert "These weights came with the bundle" in printed
    (note,) = (tmp_path / "output" / "pairs" / "images").glob("*.json")
    hashes = {name: file_hash(bundle / "released" / f"{name}.pt") for name in ("model", "control")}
    said = json.loads(note.read_text())
    assert (said["weights_sha256"], said["control_sha256"]) == tuple(hashes.values())


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


def allow(models: Path, fewest: int) -> None:
    """Any mask with so many voxels of each class; a generator of one epoch draws what is like nothing in training."""
    note = json.loads((models / "masks.json").read_text())
    for limits in note["structures"].values():
        limits |= {"voxels": [fewest, 10**9], "parts": 10**9}
    (models / "masks.json").write_text(json.dumps(note))


@controlled
def test_masks_are_synthesised_and_pairs_are_drawn_from_them(bundle: Path, tmp_path: Path) -> None:
    settings = with_generator(bundle, tmp_path)
    run(bundle, "train_masks.yaml", **settings)
    models, output = tmp_path / "models", tmp_path / "output"
    note = json.loads((models / "masks.json").read_text())
    assert note["data"].startswith("embedded") and list(note["structures"]) == list(note["knobs"]["label_classes"])
    assert len(list((output / "masks_training" / "pictures").glob("masks_*.png"))) == 1
    allow(models, fewest=10**8)
    assert "Train the generator of masks for longer" in last_line(bundle, "masks.yaml", **settings)
    allow(models, fewest=0)
    run(bundle, "masks.yaml", **settings)
    assert len(list((output / "masks").glob("mask_*.nii.gz"))) == 3
    classes = note["knobs"]["label_classes"]
    parser = workflow(bundle, "pairs.yaml", **settings, label_classes=classes).parser
    branch = {"generator": file_hash(models / "model.pt"), "knobs": {"classes": classes}}
    save_weights(parser.get_parsed_content("branch"), models / "control.pt", branch)
    run(bundle, "pairs.yaml", **settings, masks="synthesised")
    listed = json.loads((output / "pairs" / "dataset.json").read_text())
    entries = [entry for split in SPLITS for entry in listed[split]]
    assert len({entry["patient_id"] for entry in entries}) == 3
    for entry in entries:
        said = json.loads((output / "pairs" / entry["image"].replace(".nii.gz", ".json")).read_text())["mask"]
        assert said["source"] == "synthesised" and said["mask_weights_sha256"] == file_hash(models / "masks.pt")
        drawn = nib.load(output / "masks" / f"mask_{said['mask_seed']:06d}.nii.gz")
        np.testing.assert_array_equal(nib.load(output / "pairs" / entry["label"]).dataobj, np.asarray(drawn.dataobj))


@one
def test_obedience_is_measured_beside_what_the_first_stage_lets_through(bundle: Path, tmp_path: Path) -> None:
    settings = with_generator(bundle, tmp_path)
    parser = workflow(bundle, "train_control.yaml", **settings).parser
    cohort, classes = Path(parser.get_parsed_content("data_dir")), parser.get_parsed_content("label_classes")
    listed = json.loads((cohort / "dataset.json").read_text())
    cases = [case for split in SPLITS for case in listed[split]]
    split = {"training": cases[:-3], "validation": cases[-3:-2], "test": cases[-2:]}
    (cohort / "dataset.json").write_text(json.dumps({**listed, **split}))
    models = tmp_path / "models"
    branch = {"generator": file_hash(models / "model.pt"), "knobs": {"classes": classes}}
    parser = workflow(bundle, "pairs.yaml", **settings, label_classes=classes).parser
    save_weights(parser.get_parsed_content("branch"), models / "control.pt", branch)
    run(bundle, "pairs.yaml", **settings, masks_dir=str(cohort / "labels"))
    swin: dict = {"feature_size": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1], "window_size": [2, 2, 2]}
    segmenter = tmp_path / "segmenter.pt"
    knobs = {**swin, "classes": classes, "roi_size": [64, 32, 32], "axcodes": "RAS", "image_channels": 1}
    save_weights(ScriptableSwinUNETR(1, len(classes), **swin), segmenter, {"knobs": knobs})
    given = {"dataset_dir": str(cohort), "segmenter": str(segmenter)}
    run(bundle, "evaluate_pairs.yaml", **settings, **given)

    folder = tmp_path / "output" / "pairs_evaluation"
    report = json.loads((folder / "mask_obedience.json").read_text())
    assert list(report["dice"]) == ["synthetic", "floor", "first_stage", "ceiling"] and report["held_out"] == 2
    assert report["generator"] == file_hash(models / "model.pt")
    again = sorted((folder / "reconstructions").glob("*.nii.gz"))
    assert len(again) == 2, "the held-out volumes, once each"
    network = workflow(bundle, "edit.yaml", **settings).parser.get_parsed_content("network_def")
    network.load_state_dict(load_tensors(models / "model.pt"))
    expected = []
    for case in cases[-2:]:
        volume = torch.from_numpy(nib.load(cohort / case["image"]).get_fdata(dtype=np.float32))[None, None]
        volume = (volume - volume.min()) / (volume.max() - volume.min()) * 2 - 1
        with torch.no_grad():
            latent = network.first_stage.eval().encode_stage_2_inputs(volume)
            expected.append((network.first_stage.decode_stage_2_outputs(latent)[0, 0].clamp(-1, 1) + 1) * 127.5)
    found = [torch.from_numpy(nib.load(path).get_fdata(dtype=np.float32)) for path in again]
    assert all(min(float((one - other).abs().max()) for other in found) < 0.01 for one in expected)
    said = last_line(bundle, "evaluate_pairs.yaml", **{**settings, **given, "num_codes": 9})
    assert "model.pt was trained with num_codes" in said


@one
def test_a_resumed_generator_of_masks_equals_one_that_was_not_interrupted(bundle: Path, tmp_path: Path) -> None:
    settings = with_generator(bundle, tmp_path, final_lr=1.0)
    run(bundle, "train_masks.yaml", **settings | {"epochs": 2})
    straight = load_tensors(tmp_path / "models" / "masks.pt")
    shutil.rmtree(tmp_path / "output" / "masks_training")
    run(bundle, "train_masks.yaml", **settings)
    run(bundle, "train_masks.yaml", **settings | {"epochs": 2})
    resumed = load_tensors(tmp_path / "models" / "masks.pt")
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


@one
def test_synthesised_masks_are_compared_with_those_of_the_training(bundle: Path, tmp_path: Path) -> None:
    settings = with_generator(bundle, tmp_path)
    run(bundle, "train_masks.yaml", **settings)
    allow(tmp_path / "models", fewest=0)
    (cohort,) = (tmp_path / "output").glob("*cohort*")
    listed = json.loads((cohort / "dataset.json").read_text())
    cases = [case for split in SPLITS for case in listed[split]]
    (cohort / "dataset.json").write_text(
        json.dumps({**listed, "training": cases[:3], "validation": cases[3:4], "test": cases[4:]})
    )
    run(bundle, "masks.yaml", **settings)
    copied = sorted((tmp_path / "output" / "masks").glob("mask_*.nii.gz"))[1]
    shutil.copyfile(cohort / cases[0]["label"], copied)
    run(bundle, "evaluate_masks.yaml", **settings, dataset_dir=str(cohort))
    report = json.loads((tmp_path / "output" / "masks_evaluation" / "mask_evaluation.json").read_text())
    assert report["nearest_training"]["nearer_than_any_held_out"] == [copied.name]


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
