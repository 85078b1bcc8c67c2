"""``evaluate.yaml``: what it reports are the numbers of the test split."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_folders import Trained, for_bundles_with, read, undisturbed, workflow
from monai.bundle import run
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

from medical_diffusion_components.weights import load_weights

pytestmark = pytest.mark.slow  # most of these train

ldm = for_bundles_with("train_autoencoder.yaml", "evaluate.yaml")
Train = Callable[[Path], Trained]


def report(done: Trained) -> dict:
    return json.loads((done.output / "evaluation" / "evaluation.json").read_text())


def held_out(done: Trained) -> list[Path]:
    """The test split of the cohort, and all of the cohort that nothing was trained on."""
    trained_on, more = next(done.output.glob("*/dataset.json")), next(done.output.glob("held_out/*/dataset.json"))
    found = [trained_on.parent / case["image"] for case in json.loads(trained_on.read_text())["test"]]
    splits = ("training", "validation", "test")
    return found + [more.parent / case["image"] for split in splits for case in json.loads(more.read_text())[split]]


@ldm
def test_reported_psnr_is_that_of_the_test_split(bundle: Path, trained: Train) -> None:
    done = trained(bundle)
    cases = held_out(done)
    with undisturbed():
        parser = workflow(bundle, "evaluate.yaml", **done.overrides).parser
        first_stage = parser.get_parsed_content("autoencoder_def").eval()
    load_weights(first_stage, done.models / "model_autoencoder.pt")
    found = []
    for case in cases:
        image = turned(nib.load(case), read(bundle / "configs" / "train.yaml")["axcodes"])
        image = 2 * (image - image.min()) / (image.max() - image.min()) - 1
        with torch.no_grad():
            latent = first_stage.encode_stage_2_inputs(torch.from_numpy(image)[None, None])
            again = first_stage.decode_stage_2_outputs(latent)[0, 0].numpy()
        found.append(peak_signal_noise_ratio(image, again, data_range=2))
    assert abs(report(done)["metrics"]["psnr"] - np.mean(found)) < 1e-3


@ldm
def test_training_volumes_of_too_few_patients_have_no_row_and_the_report_says_so(bundle: Path, trained: Train) -> None:
    done = trained(bundle)
    datalist = json.loads(next(done.output.glob("*/dataset.json")).read_text())
    patients = len({case["patient_id"] for case in datalist["training"]})
    found = report(done)
    said = [line for line in found["warnings"] if line.startswith("training volumes have no row: ")]
    assert ("training" in found["rows"], len(said)) == ((True, 0) if patients >= 3 else (False, 1))


def turned(image: nib.Nifti1Image, axcodes: str) -> np.ndarray:
    there, here = nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(axcodes)
    return image.as_reoriented(nib.orientations.ornt_transform(there, here)).get_fdata(dtype=np.float32)


@ldm
def test_the_report_says_of_what_it_reports(bundle: Path, trained: Train) -> None:
    done = trained(bundle)
    found = report(done)
    assert found["weights_sha256"] == hashlib.sha256((done.models / "model.pt").read_bytes()).hexdigest()
    assert found["held_out_cases"] == len(held_out(done)) == found["n"]["reference"]
    assert found["n"]["synthetic"] == 3 and found["reference"] == "test"
    assert found["data"]["notice"] and found["bundle"].startswith(bundle.name)
    assert (found["sampler"], found["steps"], found["num_codes"]) == ("ddim", 2, 32)
    assert -1 <= found["metrics"]["ssim"] <= 1
    assert 1 <= found["metrics"]["perplexity"] <= 32


@ldm
def test_the_report_is_printed_and_pictured(bundle: Path, trained: Train) -> None:
    done = trained(bundle)
    assert f"ssim {report(done)['metrics']['ssim']:.4g}" in done.printed["evaluate.yaml"]
    for name in ("evaluation.png", "reconstruction.png"):  # dots against floors, volumes
        picture = np.asarray(Image.open(done.output / "evaluation" / name).convert("L"))
        assert picture.std() > 10, name


@for_bundles_with("train_autoencoder.yaml", "evaluate.yaml", at_most=1)
def test_recording_writes_the_measured_numbers_into_the_metadata(bundle: Path, trained: Train, tmp_path: Path) -> None:
    done, copied = trained(bundle), tmp_path / "metadata.json"
    original = (bundle / "configs" / "metadata.json").read_text()
    copied.write_text(original)
    with undisturbed():
        known = read(bundle / "configs" / "evaluate.yaml")
        values = {key: value for key, value in done.overrides.items() if key in known}
        run("recording", config_file=str(bundle / "configs" / "evaluate.yaml"), metadata_file=str(copied), **values)
    found = json.loads(copied.read_text())["eval_metrics"]
    assert found["weights_sha256"] == report(done)["weights_sha256"]
    assert found["first_stage"] == report(done)["metrics"]
    assert found["anatomy"]["kid"]["value"] == report(done)["rows"]["synthetic"]["anatomy"]["kid"]["value"]
    assert (bundle / "configs" / "metadata.json").read_text() == original
