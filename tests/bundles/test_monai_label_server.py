"""Two bundles in MONAI Label's server, a real one: asked as 3D Slicer asks, over HTTP, on this machine alone."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_folders import REPOSITORY, read, tiny, workflow
from label_server import CannotInstall, LabelServer, label_server, server_python
from no_network import CLOSED, may_close_the_network

from medical_diffusion_components.cohorts import resolve_dataset
from medical_diffusion_components.release import build_bundle
from medical_diffusion_components.weights import save_weights

pytestmark = pytest.mark.slow

SEGMENTER, GENERATOR = "swin_unetr_finetune", "adni_ldm"
SIZE = [64, 36, 32]
CLASSES = {"cerebrospinal fluid and other brain": 1, "grey matter": 2, "white matter": 3}


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return server_python(tmp_path_factory.mktemp("monai_label") / "environment")
    except CannotInstall as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Both, with weights of tiny networks: a segmenter as published, which knows nothing, and a generator as in a clone."""
    folder = tmp_path_factory.mktemp("bundles")
    segmenter, generator = REPOSITORY / "bundles" / SEGMENTER, folder / GENERATOR
    config = unpacked(segmenter, folder, with_weights(segmenter, folder / "weights")) / "configs" / "train.yaml"
    text = config.read_text()
    for knob, value in (("learning_rate", 1.0e-2), ("overlap", tiny(segmenter)["overlap"])):
        text = re.sub(rf"^{knob}: [^#]*", f"{knob}: {value} ", text, flags=re.MULTILINE)
    config.write_text(text)
    without = shutil.ignore_patterns("output", "models", "released", "demo")
    shutil.copytree(REPOSITORY / "bundles" / GENERATOR, generator, ignore=without)
    with_weights(generator, generator / "models")
    return [folder / SEGMENTER, generator]


def unpacked(bundle: Path, folder: Path, weights: Path) -> Path:
    """The bundle's folder below ``folder``, as it is published with these weights."""
    with zipfile.ZipFile(build_bundle(bundle, folder, weights)) as published:
        published.extractall(folder)
    return folder / bundle.name


def with_weights(bundle: Path, models: Path) -> Path:
    """``models``, with weights of a tiny network and their note."""
    small = {id: value for id, value in tiny(bundle).items() if id in read(bundle / "configs" / "train.yaml")["knobs"]}
    torch.manual_seed(0)
    network = workflow(bundle, "inference.json", **small).parser.get_parsed_content("network_def")
    if bundle.name == SEGMENTER:  # everything is background
        torch.nn.init.zeros_(network.out.conv.conv.weight)
        network.out.conv.conv.bias.data = torch.tensor([0.01, 0.0, 0.0, 0.0])
    save_weights(network, models / "model.pt", {"data": "nothing", "knobs": small, "spacing": [2.8] * 3})
    return models


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Path]]:
    """Volumes and what is drawn on them."""
    root = Path(resolve_dataset(None, str(tmp_path_factory.mktemp("cohort")), 6, SIZE, "template"))
    listed = json.loads((root / "dataset.json").read_text())
    cases = [case for split in ("training", "validation", "test") for case in listed[split]]
    return [{key: root / case[key] for key in ("image", "label")} for case in cases]


@pytest.fixture(scope="module")
def server(
    python: Path, bundles: list[Path], cohort: list, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LabelServer]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "studies").mkdir()
    for number, case in enumerate(cohort):
        shutil.copy(case["image"], folder / "studies" / f"scan{number}.nii.gz")
    with label_server(python, folder, bundles, folder / "studies", [REPOSITORY]) as running:
        yield running


@pytest.fixture
def model(server: LabelServer) -> Path:
    """Folder of the segmenter in the server."""
    return server.log.parent / "monaibundle" / "model" / SEGMENTER


def received(content: bytes, folder: Path, suffix: str = ".nii.gz") -> Path:
    path = folder / f"received{suffix}"
    path.write_bytes(content)
    return path


def test_the_server_lists_classes_of_the_segmenter_and_none_of_the_generator(server: LabelServer) -> None:
    models = server.get("/info/")["models"]
    assert set(models) == {SEGMENTER, GENERATOR}
    labels = models[SEGMENTER]["labels"]
    assert (labels if isinstance(labels, dict) else dict.fromkeys(labels)).keys() >= set(CLASSES)
    assert not models[GENERATOR]["labels"]
    options = models[GENERATOR]["config"]
    assert (
        options["seed"] == 0
        and options["num_inference_steps"] == tiny(REPOSITORY / "bundles" / GENERATOR)["num_train_timesteps"]
    )


def test_a_study_is_segmented_by_its_id_on_its_own_grid(server: LabelServer, cohort: list, tmp_path: Path) -> None:
    answer = server.send(f"/infer/{SEGMENTER}", {"image": "scan0", "output": "image"}, {"device": "cpu"})
    found, image = nib.load(received(answer, tmp_path)), nib.load(cohort[0]["image"])
    assert found.shape == image.shape
    np.testing.assert_allclose(found.affine, image.affine, atol=1e-4)
    assert set(np.unique(found.dataobj)) <= {0, 1, 2, 3}


def test_an_uploaded_volume_comes_back_as_nrrd_as_slicer_wants_it(
    server: LabelServer, cohort: list, tmp_path: Path
) -> None:
    sitk = pytest.importorskip("SimpleITK", reason="SimpleITK, which reads NRRD, is not installed")
    params = {"device": "cpu", "result_extension": ".nrrd", "result_dtype": "uint8"}
    answer = server.send(f"/infer/{SEGMENTER}", {"output": "image"}, params, {"file": cohort[1]["image"]})
    found = sitk.ReadImage(str(received(answer, tmp_path, ".nrrd")))
    image = sitk.ReadImage(str(cohort[1]["image"]))
    assert found.GetPixelID() == sitk.sitkUInt8
    assert found.GetSize() == image.GetSize()
    np.testing.assert_allclose(found.GetOrigin(), image.GetOrigin(), atol=1e-3)


def generated(server: LabelServer, folder: Path, **params: Any) -> np.ndarray:
    answer = server.send(f"/infer/{GENERATOR}", {"image": "generate", "output": "image"}, {"device": "cpu", **params})
    return np.asarray(nib.load(received(answer, folder)).dataobj)


def test_a_seed_makes_a_volume_and_the_same_one_again(server: LabelServer, tmp_path: Path) -> None:
    first = generated(server, tmp_path, seed=5)
    assert list(first.shape) == tiny(REPOSITORY / "bundles" / GENERATOR)["image_size"]
    assert first.std() > 0 and 0 <= first.min() and first.max() <= 255
    np.testing.assert_array_equal(generated(server, tmp_path, seed=5), first)
    assert np.abs(generated(server, tmp_path, seed=6) - first).max() > 0


def test_training_on_final_labels_changes_the_next_answer(
    server: LabelServer, cohort: list, model: Path, tmp_path: Path
) -> None:
    before = server.send(f"/infer/{SEGMENTER}", {"image": "scan3", "output": "image"}, {"device": "cpu"})
    assert np.asarray(nib.load(received(before, tmp_path)).dataobj).max() == 0, "it has learned nothing yet"
    for number in range(3):
        files = {"label": cohort[number]["label"]}
        server.send("/datastore/label", {"image": f"scan{number}", "tag": "final"}, {}, files, method="PUT")
    assert server.get("/datastore/")["completed"] == 3
    told = server.train(SEGMENTER, {"max_epochs": 8, "device": "cpu", "val_split": 0.34})
    log = server.log.read_text()
    assert told["status"] == "DONE", log[-5000:]
    note = json.loads((model / "models" / "model.json").read_text())
    assert note["data"] == "cases of an annotation server" and note["cases"] == {"training": 2, "validation": 1}
    assert note["sha256"] == hashlib.sha256((model / "models" / "model.pt").read_bytes()).hexdigest()
    assert note["validation"]["val_dice"] > 0
    assert re.search(r"fine-tuning, epoch 8 of 8: loss [\d.]+, 1 batch in", log), (
        "progress, and an epoch of both cases in one batch"
    )
    after = server.send(f"/infer/{SEGMENTER}", {"image": "scan3", "output": "image"}, {"device": "cpu"})
    assert np.asarray(nib.load(received(after, tmp_path)).dataobj).max() > 0


def test_weights_that_are_no_better_stay_as_they_are(server: LabelServer, model: Path) -> None:
    """After the training above, with a learning rate of which nothing is better."""
    config, weights = model / "configs" / "train.yaml", model / "models" / "model.pt"
    text = config.read_text()
    config.write_text(re.sub(r"^learning_rate: [^#]*", "learning_rate: 0.0 ", text, flags=re.MULTILINE))
    before = weights.read_bytes()
    assert server.train(SEGMENTER, {"max_epochs": 1, "device": "cpu", "val_split": 0.34})["status"] == "DONE"
    config.write_text(text)
    assert weights.read_bytes() == before
    assert "no better than" in server.log.read_text()


@pytest.mark.skipif(not may_close_the_network(), reason="unshare --net is not allowed here")
def test_published_bundles_are_served_with_the_network_closed(
    python: Path, bundles: list[Path], cohort: list, tmp_path: Path
) -> None:
    """From the unpacked zips alone: nothing of this repository is on the server's path, and it tries to reach nobody."""
    segmenter, generator = bundles
    generator = unpacked(REPOSITORY / "bundles" / GENERATOR, tmp_path, generator / "models")
    (tmp_path / "studies").mkdir()
    shutil.copy(cohort[0]["image"], tmp_path / "studies" / "scan.nii.gz")
    script = [sys.executable, str(Path(__file__).parent / "serve_offline.py"), str(tmp_path / "report.json")]
    command = [*CLOSED, *script, str(python), str(segmenter), str(generator), str(tmp_path / "studies")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "report.json").read_text()) == {"closed": True, "attempts": []}
    found, image = (nib.load(path) for path in (tmp_path / f"{SEGMENTER}.nii.gz", cohort[0]["image"]))
    assert found.shape == image.shape and set(np.unique(found.dataobj)) <= {0, 1, 2, 3}
    assert np.asarray(nib.load(tmp_path / f"{GENERATOR}.nii.gz").dataobj).std() > 0
