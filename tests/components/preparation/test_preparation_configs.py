"""The bundles' ``prepare.yaml`` on phantoms in the layout of the raw downloads, and on real DICOM."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from dicom_writing import write_series
from monai.bundle import ConfigParser, ConfigWorkflow
from phantom_downloads import first_cases, write_breast_dicom_tree, write_chest_dicom_tree, write_knee_npy_tree
from scipy import ndimage

from medical_diffusion_components.cohorts.template import template_subject
from medical_diffusion_components.data.datasets import load_cases
from medical_diffusion_components.data.splits import SPLITS
from medical_diffusion_components.dicom.series import read_series
from medical_diffusion_components.preparation.manifests import Manifest, read_manifest, write_manifest

ROOT = Path(__file__).parents[3]
BUNDLES = sorted(path.parents[1].name for path in ROOT.glob("bundles/*/configs/prepare.yaml"))


def run(bundle, tmp_path, **overrides):
    """Run ``prepare`` in this process, and list what came of it by case id."""
    executor = {"_target_": "concurrent.futures.ThreadPoolExecutor", "_mode_": "callable", "max_workers": 1}
    workflow = ConfigWorkflow(
        config_file=str(ROOT / "bundles" / bundle / "configs" / "prepare.yaml"),
        meta_file=None,
        logging_file=False,
        run_id="prepare",
        raw_dir=str(tmp_path / "raw"),
        dataset_dir=str(tmp_path / "out"),
        executor=executor,
        **overrides,
    )
    workflow.initialize()
    workflow.run()
    cases = [{**case, "split": split} for split in SPLITS for case in load_cases(tmp_path / "out", split)]
    return {case["case_id"]: case for case in cases}


def phantoms(name, write, tmp_path, **options):
    """The raw download of three phantoms, and the path of its manifest."""
    manifest = read_manifest(ROOT / "data_manifests" / f"{name}.json")
    written = write(tmp_path / "raw", first_cases(manifest.cases, 3), **options)
    write_manifest(Manifest(manifest.metadata, tuple(written)), tmp_path / "manifest.json")
    return {"manifest": str(tmp_path / "manifest.json")}, {case["case_id"]: case for case in written}


def at_the_same_places(prepared, raw, raw_affine, shift=None):
    """The raw intensities where the prepared voxels lie in the world, and which of them the raw scan covers."""
    index = np.indices(prepared.shape).reshape(3, -1)
    world = prepared.affine @ np.vstack([index, np.ones(index.shape[1])])
    if shift is not None:
        world = shift(world)
    there = (np.linalg.inv(raw_affine) @ world)[:3]
    last = np.array(raw.shape)[:, None] - 1
    inside = ((there > -1e-3) & (there < last + 1e-3)).all(axis=0)
    there = np.clip(there, 0, last)
    sigma = nib.affines.voxel_sizes(prepared.affine) / nib.affines.voxel_sizes(raw_affine) / 2.4
    order = np.abs(np.linalg.inv(raw_affine)[:3, :3] @ prepared.affine[:3, :3]).argmax(axis=1)
    smooth = ndimage.gaussian_filter(raw.astype(np.float32), np.where(sigma[order] > 0.5, sigma[order], 0))
    return ndimage.map_coordinates(smooth, there, order=1), inside


@pytest.mark.parametrize("bundle", BUNDLES)
def test_every_configuration_names_what_it_needs_and_has_no_number_as_text(bundle):
    config = ConfigParser.load_config_file(ROOT / "bundles" / bundle / "configs" / "prepare.yaml")
    text = (ROOT / "bundles" / bundle / "configs" / "prepare.yaml").read_text()
    for id, value in config.items():
        assert text.count(f"@{id}") or text.count(f"%{id}") or id in ("check", "imports", "initialize", "run"), (
            f"{id} is unused"
        )
        assert not (isinstance(value, str) and value.replace(".", "").replace("-", "").replace("e", "").isdigit()), id


def test_knees_keep_their_slices_and_are_cropped_or_padded_around_the_centre(tmp_path):
    manifest, written = phantoms("mrnet", write_knee_npy_tree, tmp_path, in_plane=96)
    made = run("mrnet_ldm", tmp_path, **manifest)
    assert set(made) == set(written)
    for case_id, case in made.items():
        raw = np.load(tmp_path / "raw" / written[case_id]["source"]["path"]).astype(float)
        raw = raw[:, ::-1].transpose(2, 1, 0)  # columns, rows upwards, slices
        image = nib.load(case["image"])
        assert case["split"] == written[case_id]["split"] and image.shape == (256, 256, 32)
        assert nib.aff2axcodes(image.affine) == ("P", "S", "R")
        np.testing.assert_allclose(nib.affines.voxel_sizes(image.affine), (0.625, 0.625, 4))
        extra = raw.shape[2] - 32
        voxels = image.get_fdata()[80:176, 80:176]
        assert (np.delete(image.get_fdata(), slice(80, 176), axis=0) == -1).all()
        kept = raw[..., extra // 2 : extra // 2 + 32] if extra >= 0 else raw
        first = max(0, -extra // 2)
        scaled = 2 * (kept - kept.min()) / np.ptp(kept) - 1
        np.testing.assert_allclose(voxels[..., first : first + kept.shape[2]], scaled, atol=1e-6)
        assert extra >= 0 or (voxels[..., first + kept.shape[2] :] == -1).all()


def test_chests_lie_where_the_scanner_saw_them_in_hounsfield_units(tmp_path):
    manifest, written = phantoms("lidc_idri", write_chest_dicom_tree, tmp_path, size=(64, 64, 40))
    window = {"limits_from": "window", "limits": [-1000.0, 1000.0]}
    small = {"spacing": [2.5, 2.5, 2.5], "crop_size": [176, 160, 192], "image_size": [88, 80, 96]}
    made = run("lidc_ldm", tmp_path, **manifest, **window, **small)
    assert set(made) == set(written)
    for case_id, case in made.items():
        image = nib.load(case["image"])
        assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
        np.testing.assert_allclose(nib.affines.voxel_sizes(image.affine), (5, 5, 5))
        raw = read_series(tmp_path / "raw" / written[case_id]["patient_id"])
        expected, inside = at_the_same_places(image, np.clip(raw.array, -1000, 1000), raw.affine)
        hounsfield = image.get_fdata().ravel() * 1000
        assert inside.mean() > 0.3 and np.abs(hounsfield - expected)[inside].mean() < 60
        assert np.corrcoef(hounsfield[inside], expected[inside])[0, 1] > 0.97
        assert np.abs(hounsfield[~inside] + 1000).mean() < 100


@pytest.mark.slow
def test_breasts_become_two_cases_of_their_patient_that_lie_alike(tmp_path):
    manifest, written = phantoms("duke", write_breast_dicom_tree, tmp_path, size=(96, 96, 24), dynamic=False)
    made = run("duke_ldm", tmp_path, **manifest, spacing=[2.6, 2.6, 6.0], image_size=[64, 64, 32])
    assert set(made) == {f"{case}_{side}" for case in written for side in ("left", "right")}
    for case_id, raw_case in written.items():
        raw = read_series(tmp_path / "raw" / raw_case["patient_id"])
        halves = {side: made[f"{case_id}_{side}"] for side in ("left", "right")}
        assert {h["split"] for h in halves.values()} == {raw_case["split"]}
        images = {side: nib.load(half["image"]) for side, half in halves.items()}
        for image in images.values():
            assert image.shape == (64, 64, 32) and nib.aff2axcodes(image.affine) == ("R", "A", "S")
        expected, inside = at_the_same_places(images["right"], raw.array, raw.affine)
        assert np.corrcoef(images["right"].get_fdata().ravel()[inside], expected[inside])[0, 1] > 0.97
        best = max(_mirrored_correlation(images["left"], raw, plane) for plane in np.arange(-12, 13, 2.0))
        assert best > 0.97


def _mirrored_correlation(image, raw, plane):
    mirror = np.diag([-1.0, 1, 1, 1])
    mirror[0, 3] = 2 * plane
    expected, inside = at_the_same_places(image, raw.array, raw.affine, lambda world: mirror @ world)
    return np.corrcoef(image.get_fdata().ravel()[inside], expected[inside])[0, 1]


@pytest.mark.slow
def test_nifti_of_ones_own_goes_through_the_brain_bundle_without_a_manifest(tmp_path):
    (tmp_path / "raw").mkdir()
    for index in range(3):
        subject = template_subject(index, (40, 40, 40))
        turned = nib.Nifti1Image(subject.image + 1, subject.affine).as_reoriented([[2, -1], [0, 1], [1, -1]])
        nib.save(turned, tmp_path / "raw" / f"subject{index}.nii.gz")
    made = run("adni_ldm", tmp_path, image_size=[24, 24, 24])
    assert sorted(made) == ["subject0", "subject1", "subject2"]
    for case_id, case in made.items():
        image, raw = nib.load(case["image"]), nib.load(tmp_path / "raw" / f"{case_id}.nii.gz")
        expected, inside = at_the_same_places(image, raw.get_fdata(), raw.affine)
        assert image.shape == (24, 24, 24) and np.ptp(nib.affines.voxel_sizes(image.affine)) < 1e-4
        assert np.corrcoef(image.get_fdata().ravel()[inside], expected[inside])[0, 1] > 0.97
    assert '"skull": false' in (tmp_path / "out" / "report.json").read_text()


@pytest.mark.slow
def test_the_real_knee_keeps_its_slices_and_its_place(tmp_path, knee_folder):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "knee0").symlink_to(knee_folder, target_is_directory=True)
    raw = read_series(knee_folder, echo_time="first")
    for number in (1, 2):  # a folder to train on needs three patients
        other = np.roll(raw.array, 40 * number, axis=0)
        nib.save(nib.Nifti1Image(other, raw.affine), tmp_path / "raw" / f"knee{number}.nii.gz")
    made = run("mrnet_ldm", tmp_path, manifest="none", patient_pattern="(knee.)")
    image = nib.load(made["knee0"]["image"])
    assert image.shape == (256, 256, 32) and nib.aff2axcodes(image.affine) == ("P", "S", "R")
    expected, inside = at_the_same_places(image, raw.array, raw.affine)
    assert inside.mean() == pytest.approx(24 / 32, abs=0.01)
    assert np.corrcoef(image.get_fdata().ravel()[inside], expected[inside])[0, 1] > 0.999


@pytest.mark.slow
def test_a_ct_of_512_x_512_x_600_voxels_takes_less_than_3_gigabytes(tmp_path):
    rng = np.random.default_rng(0)
    coarse = rng.integers(-1000, 1000, (64, 64, 75)).astype(np.int16)
    volume = np.kron(coarse, np.ones((8, 8, 8), np.int16))
    volume += rng.integers(-9, 10, volume.shape, np.int16)  # blocks of one value each would be a label map
    write_series(tmp_path / "raw" / "ct", volume, np.diag([-0.7, -0.7, 0.6, 1.0]), patient_id="P")
    del volume
    config = ROOT / "bundles" / "lidc_ldm" / "configs" / "prepare.yaml"
    code = f"""
from monai.bundle import ConfigParser
from medical_diffusion_components.preparation.case import prepare_case, start_worker
from medical_diffusion_components.preparation.raw_cases import cases_of_folder
parser = ConfigParser()
parser.read_config({str(config)!r})
start_worker(parser.get_parsed_content("worker_memory_gib"))
raw, out = {str(tmp_path / "raw")!r}, {str(tmp_path / "out")!r}
result = prepare_case(cases_of_folder(raw)[0], parser.get_parsed_content("steps"), raw, out, "")
print(result.status, result.reason, result.text, result.peak_mib, sep=";")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    status, reason, text, peak = done.stdout.strip().splitlines()[-1].split(";")
    assert status == "made", f"{reason}: {text}"
    assert 1000 < float(peak) < 3e9 / 2**20
    assert nib.load(tmp_path / "out" / "images" / "ct.nii.gz").shape == (128, 128, 128)
