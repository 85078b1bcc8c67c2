"""``swin_unetr_finetune`` as MONAI Label's stock ``monaibundle`` app (0.8.5) uses it, without the server.

The app reads ``inference.json`` with a bare parser, builds network, transforms and inferer by their ids, and drops
``SaveImaged``; for training it hands ``train.yaml`` with a few overrides to ``monai.bundle.run``.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_folders import REPOSITORY, Trained, undisturbed
from monai.bundle import ConfigItem, ConfigParser
from monai.transforms import SaveImaged

from medical_diffusion_components.files import file_hash
from medical_diffusion_components.reports.segmentation_montage import SegmentationMontage
from medical_diffusion_components.weights import provenance

pytestmark = pytest.mark.slow  # most of these train

BUNDLE = REPOSITORY / "bundles" / "swin_unetr_finetune"
KNOBS = ("feature_size", "depths", "window_size", "roi_size", "overlap", "iterations_per_epoch")


@pytest.fixture
def done(trained: Callable[[Path], Trained]) -> Trained:
    return trained(BUNDLE)


@pytest.fixture
def served(done: Trained, tmp_path: Path) -> Path:
    """The bundle as a user puts it into the app: a copy with its settings written into the files, and weights."""
    copy = tmp_path / "app" / "model" / BUNDLE.name
    shutil.copytree(BUNDLE, copy, ignore=shutil.ignore_patterns("output", "models", "demo"))
    shutil.copytree(done.models, copy / "models")
    for name, line in (("train.yaml", r"^{0}: [^#]*"), ("inference.json", r'^  "{0}": .*,$')):
        file = copy / "configs" / name
        for knob in KNOBS:
            new = f"{knob}: {done.overrides[knob]} " if name == "train.yaml" else f'  "{knob}": {done.overrides[knob]},'
            file.write_text(re.sub(line.format(knob), new, file.read_text(), flags=re.MULTILINE))
    return copy


def studies(done: Trained) -> list[dict[str, str]]:
    """What the datastore gives: image and label, no id."""
    folder = next(done.output.glob("*/dataset.json")).parent
    listed = json.loads((folder / "dataset.json").read_text())["training"]
    return [{key: str(folder / case[key]) for key in ("image", "label")} for case in listed]


def infer(bundle: Path, image: Path) -> torch.Tensor:
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "inference.json"))
    parser.config.update({"bundle_root": str(bundle), "use_click": False})
    network = parser.get_parsed_content("network_def", instantiate=True)
    weights = min((bundle / "models").glob("*.pt"), key=lambda path: len(path.name))
    network.load_state_dict(torch.load(weights, weights_only=True), strict=False)
    options = parser.get_parsed_content("displayable_configs", instantiate=True)
    request = {"image": str(image), "image_path": str(image), "device": "cpu", "model": bundle.name, **options}
    parser["displayable_configs"].update({name: request[name] for name in options})
    parser.parse()
    parser.config.update({"device": "cpu"})  # text, not a device
    if parser.ref_resolver.items.get("device"):
        parser.ref_resolver.items["device"] = ConfigItem(config="cpu", id="device")
    data = dict(request)
    for transform in parser.get_parsed_content("preprocessing", instantiate=True).transforms:
        data = transform(data)
    inferer = parser.get_parsed_content("inferer", instantiate=True)
    with torch.no_grad():
        data["pred"] = inferer(data["image"][None], network.eval())[0]
    for transform in parser.get_parsed_content("postprocessing", instantiate=True).transforms:
        if not isinstance(transform, SaveImaged):
            data = transform(data)
    assert data["result_extension"] == ".nii.gz"
    return data["pred"]


def test_inference_gives_the_classes_that_the_bundle_itself_writes(done: Trained, served: Path) -> None:
    written = min((done.output / "segmentations").glob("*_seg.nii.gz"))
    [image] = done.output.glob(f"template_cohort_*/images/{written.name.replace('_seg', '')}")
    with undisturbed():
        found = infer(served, image)
    assert tuple(found.shape) == (1, *nib.load(image).shape)
    np.testing.assert_allclose(found.affine, nib.load(image).affine, atol=1e-4)
    same = np.asarray(found[0]) == np.asarray(nib.load(written).dataobj)
    assert same.mean() > 0.999
    assert not (served / "output").exists(), "no cohort is made for an image of the server's"


def train(bundle: Path, training: list[dict], validation: list[dict], epochs: int = 1) -> str:
    config = ConfigParser()
    config.read_config(str(bundle / "configs" / "train.yaml"))
    config.config.update({"bundle_root": str(bundle)})
    handlers = config.get("train#handlers", [])
    loader = {"_target_": "CheckpointLoader", "load_path": str(bundle / "models" / "model.pt"), "strict": False}
    if (bundle / "models" / "model.pt").is_file():  # the server, too, looks first
        handlers.insert(0, loader | {"load_dict": {"model": "$@network"}})
    overrides = {
        "bundle_root": str(bundle),
        "train#trainer#max_epochs": epochs,
        "train#dataset#data": training,
        "device": torch.device("cpu"),
        "train#handlers": handlers,
        "validate#dataset#data": validation,
    }
    with undisturbed() as printed:
        monai.bundle.run(
            run_id="run",
            init_id=None,
            final_id=None,
            meta_file=str(bundle / "configs" / "metadata.json"),
            config_file=str(bundle / "configs" / "train.yaml"),
            **overrides,
        )
    return printed.getvalue()


def with_learning_rate(bundle: Path, value: str) -> None:
    file = bundle / "configs" / "train.yaml"
    file.write_text(re.sub(r"^learning_rate: [^#]*", f"learning_rate: {value} ", file.read_text(), flags=re.MULTILINE))


def test_training_starts_from_the_servers_weights_and_keeps_them_if_it_does_no_better(
    done: Trained, served: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice, the second time with a label more: nothing of the first is in its way."""
    monkeypatch.setattr(SegmentationMontage, "_draw", lambda *_: None)
    monkeypatch.chdir(served)
    cases = studies(done)
    with_learning_rate(served, "0.0")
    before = {file.name: file.read_bytes() for file in (served / "models").iterdir()}
    for number in (1, 2):
        printed = train(served, cases[:number], cases[-1:])
        assert "No dataset_dir was given" not in printed
        assert "from scratch" not in printed and not list(served.rglob("transfer.json"))
        assert {file.name: file.read_bytes() for file in (served / "models").iterdir()} == before
    assert not list(served.rglob("template_cohort*")) and not list(served.rglob("checkpoint*"))


def test_without_weights_training_starts_from_scratch_and_says_so(
    done: Trained, served: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SegmentationMontage, "_draw", lambda *_: None)
    (served / "models" / "model.pt").unlink()
    assert "starts from scratch" in train(served, studies(done)[:1], studies(done)[-1:])
    assert (served / "models" / "model.pt").is_file()


def test_training_replaces_weights_that_it_betters(
    done: Trained, served: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SegmentationMontage, "_draw", lambda *_: None)
    cases, weights = studies(done), served / "models" / "model.pt"
    state = torch.load(weights, weights_only=True)
    state["out.conv.conv.weight"].zero_()
    state["out.conv.conv.bias"].copy_(torch.tensor([0.01, 0.0, 0.0, 0.0]))  # everything is background
    torch.save(state, weights)
    note = provenance(weights) | {"sha256": file_hash(weights)}
    weights.with_suffix(".json").write_text(json.dumps(note))
    with_learning_rate(served, "1.0e-2")
    train(served, cases[:2], cases[-1:], epochs=15)
    note = json.loads(weights.with_suffix(".json").read_text())
    assert note["data"] == "cases of an annotation server"
    assert note["cases"] == {"training": 2, "validation": 1} and note["validation"]["val_dice"] > 0
    assert note["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert torch.load(weights, weights_only=True)["out.conv.conv.weight"].abs().max() > 0


def test_training_without_a_case_to_validate_with_is_refused(done: Trained, served: Path) -> None:
    with pytest.raises(RuntimeError) as error:
        train(served, studies(done)[:1], [])
    cause = error.value
    while cause.__cause__ is not None:
        cause = cause.__cause__
    assert "cases to validate with" in str(cause)
