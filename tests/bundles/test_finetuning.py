"""Segmentation, end to end: training, resume, transfer, evaluation and inference of ``swin_unetr_finetune``."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import monai.bundle
import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from bundle_folders import REPOSITORY, Trained, assert_same, last_line, read, run, tiny, tree, undisturbed
from dicom_writing import write_series
from monai.bundle import ConfigParser
from monai.inferers import SlidingWindowInferer
from monai.networks.nets import SwinUNETR
from PIL import Image
from scipy.ndimage import gaussian_filter
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from medical_diffusion_components.data import volumes_to_segment
from medical_diffusion_components.handlers.seeding import SeedIterations
from medical_diffusion_components.reports.segmentation_montage import SegmentationMontage
from medical_diffusion_components.weights import save_weights

pytestmark = pytest.mark.slow  # most of these train

BUNDLE = REPOSITORY / "bundles" / "swin_unetr_finetune"
NETWORK = {"feature_size": 12, "depths": [1, 1, 1, 1], "num_heads": [3, 6, 12, 24], "window_size": 2}
CLASSES = ["background", "cerebrospinal fluid and other brain", "grey matter", "white matter"]


@pytest.fixture
def done(trained: Callable[[Path], Trained]) -> Trained:
    return trained(BUNDLE)


def cohort(done: Trained) -> Path:
    return next(done.output.glob("*/dataset.json")).parent


def cases(done: Trained, split: str) -> list[dict]:
    return json.loads((cohort(done) / "dataset.json").read_text())[split]


def settings(done: Trained, folder: Path, **overrides: Any) -> dict[str, Any]:
    """Those of the trained bundle, on its cohort as a user's data."""
    folders = {"output_dir": str(folder / "output"), "models_dir": str(folder / "models")}
    return done.overrides | folders | {"dataset_dir": str(cohort(done))} | overrides


def note(models: Path) -> dict:
    return json.loads((models / "model.json").read_text())


def plain_network(done: Trained) -> SwinUNETR:
    network = SwinUNETR(in_channels=1, out_channels=4, **NETWORK)
    network.load_state_dict(torch.load(done.models / "model.pt", weights_only=True))
    return network.eval()


def test_weights_are_those_of_a_plain_swin_unetr_and_say_what_they_were_made_from(done: Trained) -> None:
    plain_network(done)
    found = note(done.models)
    assert found["sha256"] == hashlib.sha256((done.models / "model.pt").read_bytes()).hexdigest()
    assert found["data"] == "embedded template cohort" and "not patients" in found["notice"]
    assert found["cases"] == {"training": len(cases(done, "training")), "validation": 1}
    assert list(found["knobs"]["classes"]) == CLASSES and found["pretrained"] is None and found["resample"] is False
    assert "from scratch: no pretrained_weights were given" in done.printed["train.yaml"]
    assert "No dataset_dir was given" in done.printed["train.yaml"]
    last = done.printed["train.yaml"].splitlines()[-1]
    assert f"weights of epoch {found['epoch']} at {done.models / 'model.pt'}" in last


def test_training_leaves_curves_and_pictures_in_colour(done: Trained) -> None:
    events = EventAccumulator(str(done.output / "finetuning" / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) >= {"loss", "val_dice", "val_surface_distance"}
    assert len(events.Scalars("loss")) == 2, "iterations_per_epoch, though there are more cases"
    for file in (*done.output.rglob("segmentation_*.png"), done.output / "evaluation" / "evaluation.png"):
        picture = np.asarray(Image.open(file).convert("RGB")).astype(int)
        assert (np.ptp(picture, axis=-1) > 60).mean() > 0.01


def test_reported_dice_is_that_of_the_test_split(done: Trained) -> None:
    network, report = plain_network(done), json.loads((done.output / "evaluation" / "evaluation.json").read_text())
    inferer = SlidingWindowInferer(
        done.overrides["roi_size"], overlap=done.overrides["overlap"], mode="gaussian", cval=-1
    )
    assert report["cases"].keys() == {case["case_id"] for case in cases(done, "test")}
    for case in cases(done, "test"):
        image, label = (nib.load(cohort(done) / case[key]).get_fdata(dtype=np.float32) for key in ("image", "label"))
        volume = torch.from_numpy(2 * (image - image.min()) / (image.max() - image.min()) - 1)[None, None]
        with torch.no_grad():
            predicted = inferer(volume, network).argmax(1)[0].numpy()
        for value, name in enumerate(CLASSES[1:], start=1):
            both = ((predicted == value) & (label == value)).sum()
            dice = 2 * both / ((predicted == value).sum() + (label == value).sum())
            assert report["cases"][case["case_id"]]["dice"][name] == pytest.approx(dice, abs=2e-3)
    assert report["weights_sha256"] == note(done.models)["sha256"] and report["split"] == "test"
    assert "dice: mean" in done.printed["evaluate.yaml"]


class Interrupted(Exception):
    """Stands for whatever ends a process in the middle of an epoch."""


def test_resumed_training_equals_uninterrupted(done: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SegmentationMontage, "_draw", lambda *_: None)
    seed = SeedIterations.__call__
    longer = {"epochs": 2, "iterations_per_epoch": 2, "num_labelled": 2}
    run(BUNDLE, "train.yaml", **settings(done, tmp_path / "whole", **longer))

    def interrupt(self: SeedIterations, engine: Any) -> None:
        if engine.state.iteration == 4:
            raise Interrupted
        seed(self, engine)

    parts = settings(done, tmp_path / "parts", **longer, checkpoint_minutes=0)
    with monkeypatch.context() as patch:
        patch.setattr(SeedIterations, "__call__", interrupt)
        assert last_line(BUNDLE, "train.yaml", **parts).startswith("Stopped: Interrupted")
    assert "iteration 3, epoch 1" in run(BUNDLE, "train.yaml", **parts)
    newest = [max((tmp_path / n / "output").rglob("checkpoint_*.pt")) for n in ("whole", "parts")]
    assert newest[0].name == newest[1].name == "checkpoint_000000004.pt"
    assert_same(*(torch.load(path, weights_only=True) for path in newest))
    one, other = (tree(tmp_path / n / "models") for n in ("whole", "parts"))
    assert one == other
    line = last_line(BUNDLE, "train.yaml", **parts | {"label_seed": 5})
    assert "is from another training: data was" in line


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``swin_unetr_pretrain`` leaves, as far as this bundle can tell."""
    torch.manual_seed(7)
    network = SwinUNETR(in_channels=1, out_channels=1, **NETWORK)
    return save_weights(network, tmp_path_factory.mktemp("pretrained") / "model.pt", {"data": "synthetic volumes"})


def test_training_starts_from_pretrained_weights(done: Trained, pretrained: Path, tmp_path: Path) -> None:
    """With a learning rate of nothing the trained network is the one that it started from."""
    still = {"learning_rate": 1e-12, "pretrained_weights": str(pretrained), "num_labelled": 1}
    printed = run(BUNDLE, "train.yaml", **settings(done, tmp_path, **still))
    assert f"training starts from {pretrained}, pre-trained on: synthetic volumes" in printed
    found, given = (torch.load(path, weights_only=True) for path in (tmp_path / "models" / "model.pt", pretrained))
    for name, tensor in given.items():
        if not name.startswith("out."):
            torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6)
    digest = hashlib.sha256(pretrained.read_bytes()).hexdigest()
    assert note(tmp_path / "models")["pretrained"] == digest and note(tmp_path / "models")["patients"] == 1
    report = json.loads((tmp_path / "output" / "finetuning" / "transfer.json").read_text())["pretrained"]
    assert report["sha256"] == digest and set(report["left"]) == {"out.conv.conv.weight", "out.conv.conv.bias"}


def test_pretrained_weights_of_another_size_or_none_at_all_are_named(
    done: Trained, pretrained: Path, tmp_path: Path
) -> None:
    line = last_line(
        BUNDLE, "train.yaml", **settings(done, tmp_path, pretrained_weights=str(pretrained), feature_size=24)
    )
    assert line.startswith(f"Stopped: WeightsError: {pretrained} does not fit the encoder and decoder of the network: ")
    assert "the file's feature_size is 12, the network's 24" in line
    line = last_line(BUNDLE, "train.yaml", **settings(done, tmp_path, pretrained_weights="/none/model.pt"))
    assert "expected pre-trained weights at /none/model.pt" in line
    assert not (tmp_path / "models").exists()


def relabel(path: Path, change: Callable[[np.ndarray], np.ndarray], affine: np.ndarray | None = None) -> None:
    volume = nib.load(path)
    voxels = change(np.asarray(volume.dataobj))
    nib.save(nib.Nifti1Image(voxels, volume.affine if affine is None else affine), path)


SPOILT = {
    "grid of another size": (lambda p: relabel(p, lambda v: v[:, :, 1:]), "64x36x31 voxels, its image .* has 64x36x32"),
    "grid in another place": (lambda p: relabel(p, lambda v: v, np.diag([2, 2, 2, 1])), "lies elsewhere than its image"),
    "values nobody expects": (lambda p: relabel(p, lambda v: 2 * v), r"outside the expected classes .*: 4 \("),
    "fractions": (lambda p: relabel(p, lambda v: v / np.float32(2)), "whole numbers, got 0.5"),
}  # fmt: skip


@pytest.mark.parametrize("kind", SPOILT)
def test_a_label_that_cannot_be_used_is_named(kind: str, done: Trained, tmp_path: Path) -> None:
    spoil, cause = SPOILT[kind]
    data = Path(shutil.copytree(cohort(done), tmp_path / "data"))
    case = cases(done, "training")[0]
    spoil(data / case["label"])
    line = last_line(BUNDLE, "train.yaml", **settings(done, tmp_path, dataset_dir=str(data)))
    pattern = rf"Stopped: VolumeError: case {case['case_id']}: {data / case['label']}: .*{cause}"
    assert re.match(pattern, line), line
    assert not (tmp_path / "models").exists()


def test_volumes_smaller_than_the_window_are_named_or_padded(done: Trained, tmp_path: Path) -> None:
    larger = settings(done, tmp_path, roi_size=[64, 64, 32])
    line = last_line(BUNDLE, "train.yaml", **larger)
    assert "expected at least 64x64x32 voxels, got 64x36x32" in line and "images/template_" in line
    run(BUNDLE, "train.yaml", **larger, pad_to_window=True, num_labelled=1)
    assert (tmp_path / "models" / "model.pt").is_file()


def test_a_folder_without_labels_is_named(done: Trained, nifti_folder: Path, tmp_path: Path) -> None:
    line = last_line(BUNDLE, "train.yaml", **settings(done, tmp_path, dataset_dir=str(nifti_folder)))
    assert line.startswith(f"Stopped: ValueError: {nifti_folder}: ") and "training cases have no label" in line


# Voxels along -y, x and z, tilted by 10 degrees, 1.5 x 0.8 x 3 mm, somewhere in the world.
TILT = np.array([[np.cos(0.17), 0, np.sin(0.17)], [0, 1, 0], [-np.sin(0.17), 0, np.cos(0.17)]])
OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = TILT @ np.array([[0, 1, 0], [-1, 0, 0], [0, 0, 1]]) @ np.diag([1.5, 0.8, 3.0])
OBLIQUE[:3, 3] = [11, -25, 40]


@pytest.fixture
def oblique(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """A NIfTI file of two smooth blobs in dark surroundings, and where they are, on its own grid."""
    inside = np.zeros((40, 70, 23), dtype=np.float32)
    inside[5:18, 10:30, 3:10] = 1
    inside[22:35, 40:66, 9:21] = 1
    image = nib.Nifti1Image((gaussian_filter(inside, 1) * 900 + 50).astype(np.float32), OBLIQUE)
    path = tmp_path / "volumes" / "visit 1" / "scan.nii.gz"
    path.parent.mkdir(parents=True)
    nib.save(image, path)
    return path, gaussian_filter(inside, 1) > 0.5


def thresholding(folder: Path, **facts: Any) -> dict[str, Any]:
    """A network whose answer is known: brighter than the middle of the volume is class 1."""
    network = torch.nn.Conv3d(1, 2, 1)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([-50.0, 50.0]).reshape(2, 1, 1, 1, 1))
        network.bias.zero_()
    save_weights(network, folder / "models" / "model.pt", {"spacing": [1.2, 1.2, 1.2], **facts})
    network_def = {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 2, "kernel_size": 1}
    return {"network_def": network_def, "classes": {"background": 0, "blob": 1}, "models_dir": str(folder / "models")}


def test_inference_comes_back_on_the_grid_of_the_file(
    oblique: tuple[Path, np.ndarray],
    tmp_path: Path,
    recwarn: pytest.WarningsRecorder,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path, inside = oblique
    options = thresholding(tmp_path) | {"output_dir": str(tmp_path / "output"), "roi_size": [64, 32, 32]}
    run(BUNDLE, "inference.json", **options, dataset_dir=str(path.parents[1]))
    said = [*caplog.messages, *(str(warning.message) for warning in recwarn)]
    assert not [text for text in said if "odec" in text], "a decoder of DICOM that is absent is of no matter here"
    [made] = (tmp_path / "output" / "segmentations").rglob("*.nii.gz")
    assert made.name == "visit 1_scan_seg.nii.gz", "the folder tells one visit from another"
    segmented = nib.load(made)
    assert segmented.shape == inside.shape and segmented.get_data_dtype() == np.uint8
    np.testing.assert_allclose(segmented.affine, OBLIQUE, atol=1e-4)
    found = np.asarray(segmented.dataobj) == 1
    assert set(np.unique(segmented.dataobj)) == {0, 1}
    assert 2 * (found & inside).sum() / (found.sum() + inside.sum()) > 0.95
    told = json.loads((tmp_path / "output" / "segmentations" / "segmentations.json").read_text())
    assert told["volumes"] == 1 and told["classes"] == {"background": 0, "blob": 1}
    assert told["weights_sha256"] == hashlib.sha256((tmp_path / "models" / "model.pt").read_bytes()).hexdigest()
    for blob in (np.s_[:20], np.s_[20:]):  # each of the two in its place
        np.testing.assert_allclose(np.argwhere(found[blob]).mean(0), np.argwhere(inside[blob]).mean(0), atol=0.3)


def test_evaluation_of_resampled_volumes_is_on_the_grid_of_the_label(
    oblique: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    """The network works on 4 mm voxels; labels of 1.5 x 0.8 x 3 mm are not touched."""
    path, inside = oblique
    listed = {}
    for split in ("training", "validation", "test"):
        image, label = (path.with_name(f"{split}_{name}.nii.gz") for name in ("image", "label"))
        scan = nib.load(path)
        scan.header["descrip"] = (
            split  # the same voxels, and not the same bytes, which would be one scan in several splits
        )
        nib.save(scan, image)
        nib.save(nib.Nifti1Image(inside.astype(np.uint8), OBLIQUE), label)
        listed[split] = [{"image": str(image), "label": str(label), "case_id": split, "patient_id": split}]
    (path.parent / "dataset.json").write_text(json.dumps(listed))
    found = {}
    for resample, spacing in ((False, 1.2), (True, 1.2), (True, 4.0)):
        options = thresholding(tmp_path, spacing=[spacing] * 3, resample=resample) | {
            "output_dir": str(tmp_path / "output")
        }
        run(BUNDLE, "evaluate.yaml", **options, dataset_dir=str(path.parent), roi_size=[64, 32, 32])
        report = json.loads((tmp_path / "output" / "evaluation" / "evaluation.json").read_text())
        found[resample, spacing] = {metric: value["blob"] for metric, value in report["cases"]["test"].items()}
    assert found[False, 1.2]["dice"] > 0.99 and found[False, 1.2]["surface_distance"] < 0.1, (
        "its threshold is the label's"
    )
    assert 0.95 < found[True, 1.2]["dice"] < found[False, 1.2]["dice"]
    assert 0.8 < found[True, 4.0]["dice"] < found[True, 1.2]["dice"]
    assert 0.05 < found[True, 4.0]["surface_distance"] < 2, "mm"


def test_a_dicom_series_comes_back_as_a_seg_that_refers_to_its_images(
    oblique: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    hd = pytest.importorskip("highdicom", reason="highdicom, which writes DICOM SEG, is not installed")
    path, inside = oblique
    image = nib.load(path)
    slices = write_series(tmp_path / "study" / "series", np.asarray(image.dataobj).round(), image.affine, modality="MR")
    options = thresholding(tmp_path) | {"output_dir": str(tmp_path / "output"), "roi_size": [64, 32, 32]}
    with pytest.raises(FileNotFoundError, match="DICOM series need --output_format dicom"):
        volumes_to_segment(tmp_path / "study")
    said = last_line(BUNDLE, "inference.json", **options, dataset_dir=str(tmp_path / "study"), output_format="nrrd")
    assert "expected an output_format of nifti or dicom, got 'nrrd'" in said
    for _ in range(2):  # again, over its own files
        run(BUNDLE, "inference.json", **options, dataset_dir=str(tmp_path / "study"), output_format="dicom")
    made = tmp_path / "output" / "segmentations"
    [written], [nifti] = made.glob("*_seg.dcm"), made.glob("*_seg.nii.gz")
    uids = [pydicom.dcmread(file).SOPInstanceUID for file in slices]
    seg = hd.seg.segread(written)
    found = seg.get_pixels_by_source_instance(uids, ignore_spatial_locations=True, assert_missing_frames_are_empty=True)
    found = found[..., 0].T == 1
    assert seg.SegmentSequence[0].SegmentLabel == "blob"
    assert 2 * (found & inside).sum() / (found.sum() + inside.sum()) > 0.95
    aligned = (
        nib.as_closest_canonical(nib.load(nifti)),
        nib.as_closest_canonical(nib.Nifti1Image(found * 1.0, image.affine)),
    )
    np.testing.assert_array_equal(*(np.asarray(volume.dataobj) for volume in aligned))


def test_without_data_inference_segments_the_test_split_of_the_cohort(done: Trained) -> None:
    for case in cases(done, "test"):
        [made] = (done.output / "segmentations").rglob(f"{case['case_id']}_seg.nii.gz")
        image, segmented = nib.load(cohort(done) / case["image"]), nib.load(made)
        assert segmented.shape == image.shape and set(np.unique(segmented.dataobj)) <= {0, 1, 2, 3}
        np.testing.assert_allclose(segmented.affine, image.affine, atol=1e-4)


def test_network_in_and_out_are_as_declared() -> None:
    """The Model Zoo's check, with fewer channels."""
    with undisturbed():
        monai.bundle.verify_net_in_out(
            net_id="network_def",
            meta_file=str(BUNDLE / "configs" / "metadata.json"),
            config_file=str(BUNDLE / "configs" / "inference.json"),
            device="cpu",
            **NETWORK,
        )


def test_the_declared_classes_are_those_of_the_configurations() -> None:
    declared = json.loads((BUNDLE / "configs" / "metadata.json").read_text())["network_data_format"]
    names = declared["outputs"]["pred"]["channel_def"]
    for file in ("train.yaml", "evaluate.yaml", "inference.json"):
        config = ConfigParser(read(BUNDLE / "configs" / file))
        classes = config.get_parsed_content("classes")
        assert {str(value): name for name, value in classes.items()} == names
        assert config.get_parsed_content("roi_size") == declared["inputs"]["image"]["spatial_shape"]


def test_augmentation_is_that_of_the_paper() -> None:
    augmentation = read(BUNDLE / "configs" / "train.yaml")["train"]["augmentation"]
    names = {
        step["transform"]["_target_"].removeprefix("torchio.Random") for step in augmentation if "transform" in step
    }
    assert names == {"Flip", "Affine", "Ghosting", "Noise", "Blur", "BiasField", "Gamma"}
    for step in augmentation[:-1]:
        assert 0 < step["transform"].get("p", step["transform"].get("flip_probability", 0)) < 1
        assert (step["keys"], step["label_keys"]) == ("image", "label")


def test_knobs_that_the_two_swin_bundles_share_have_one_value() -> None:
    here, there = (
        read(REPOSITORY / "bundles" / f"swin_unetr_{n}" / "configs" / "train.yaml") for n in ("finetune", "pretrain")
    )
    demos = [
        read(REPOSITORY / "bundles" / f"swin_unetr_{n}" / "configs" / "demo.yaml") for n in ("finetune", "pretrain")
    ]
    for id in ("image_channels", "feature_size", "depths", "num_heads", "window_size", "axcodes"):
        assert here[id] == there[id]
        assert demos[0].get(id) == demos[1].get(id)


def test_tiny_settings_are_those_that_these_tests_build_networks_with() -> None:
    found = tiny(BUNDLE)
    assert all(found.get(id, read(BUNDLE / "configs" / "train.yaml")[id]) == value for id, value in NETWORK.items())
