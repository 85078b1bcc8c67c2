"""Phantoms as raw downloads: the layout, identifiers and values that a real download has."""

import json
from pathlib import Path

import numpy as np
import pydicom
import pytest
from phantom_downloads import (
    first_cases,
    subject_number,
    write_breast_dicom_tree,
    write_chest_dicom_tree,
    write_knee_npy_tree,
)

from medical_diffusion_components.cohorts.phantoms import PHANTOM_NOTICE, breast_phantom, chest_phantom, knee_phantom
from medical_diffusion_components.dicom.series import read_series
from medical_diffusion_components.preparation.manifests import Manifest, read_manifest, write_manifest

MANIFESTS = Path(__file__).parents[3] / "data_manifests"
SIZE = (32, 28, 12)


@pytest.fixture(scope="module")
def knees(tmp_path_factory):
    root = tmp_path_factory.mktemp("raw") / "knee"
    cases = first_cases(read_manifest(MANIFESTS / "mrnet.json").cases, 4)
    return root, write_knee_npy_tree(root, cases, in_plane=40, num_slices=12)


@pytest.fixture(scope="module")
def breasts(tmp_path_factory):
    root = tmp_path_factory.mktemp("raw") / "breast"
    return root, write_breast_dicom_tree(root, first_cases(read_manifest(MANIFESTS / "duke.json").cases, 4), size=SIZE)


@pytest.fixture(scope="module")
def chests(tmp_path_factory):
    root = tmp_path_factory.mktemp("raw") / "chest"
    cases = first_cases(read_manifest(MANIFESTS / "lidc_idri.json").cases, 6)
    return root, write_chest_dicom_tree(root, cases, size=SIZE)


def slices_of(root, case, key="source"):
    return sorted((root / case["patient_id"] / case["source"]["study_uid"] / case[key]["series_uid"]).iterdir())


def test_the_first_cases_fill_every_split():
    cases = read_manifest(MANIFESTS / "duke.json").cases
    chosen = first_cases(cases, 5)
    assert {case["split"] for case in chosen} == {"training", "validation", "test"}
    assert [case["case_id"][-3:] for case in chosen] == ["001", "002", "003", "007", "013"]
    with pytest.raises(ValueError, match="between 3 and"):
        first_cases(cases, 2)


def test_arrays_lie_where_the_manifest_says_and_are_bytes(knees):
    root, cases = knees
    for case in cases:
        for plane in ("axial", "coronal", "sagittal"):
            array = np.load(root / case["source"]["path"].replace("sagittal", plane))
            assert array.shape == (12, 40, 40) and array.dtype == np.uint8
            assert array.max() == 255


def test_sagittal_slices_are_upright_and_face_left(knees):
    root, cases = knees
    array = np.load(root / cases[0]["source"]["path"])
    phantom = knee_phantom(subject_number(cases[0]["patient_id"]), 0, (12, 40, 40), (112 / 12, 4, 4))
    expected = phantom.image[5, ::-1, ::-1].T  # anterior on the left, superior at the top
    assert np.corrcoef(array[5].ravel(), expected.ravel())[0, 1] > 0.99


def test_tables_of_labels_say_what_was_drawn(knees):
    root, cases = knees
    for finding in ("abnormal", "acl", "meniscus"):
        rows = {}
        for folder in ("train", "valid"):
            for line in (root / f"{folder}-{finding}.csv").read_text().splitlines():
                number, value = line.split(",")
                rows[f"{folder}/sagittal/{number}.npy"] = int(value)
        findings = {c["source"]["path"]: knee_phantom(subject_number(c["patient_id"]), 0, (8, 8, 8)) for c in cases}
        assert rows == {path: phantom.findings[finding] for path, phantom in findings.items()}


def test_series_have_the_identifiers_of_the_manifest(breasts, chests):
    for root, cases in (breasts, chests):
        for case in cases:
            paths = slices_of(root, case)
            assert len(paths) == case["source"]["num_images"] == 12
            header = pydicom.dcmread(paths[0])
            assert header.PatientID == case["patient_id"]
            assert header.StudyInstanceUID == case["source"]["study_uid"]
            assert header.SeriesInstanceUID == case["source"]["series_uid"]


def test_every_file_says_that_it_is_a_phantom(breasts, chests):
    for root, cases in (breasts, chests):
        assert (root / "PHANTOMS.txt").read_text().strip() == PHANTOM_NOTICE
        for path in slices_of(root, cases[0]):
            header = pydicom.dcmread(path)
            assert header.SeriesDescription.startswith("PHANTOM") and header.ImageComments == PHANTOM_NOTICE
            assert header.PatientName == "PHANTOM" and header.QualityControlImage == "YES"


def test_hounsfield_units_and_padding_survive_the_files(chests):
    root, cases = chests
    paddings = set()
    for case in cases:
        read = read_series(root / case["patient_id"], case["source"]["series_uid"], num_slices=12)
        spacing = (*(case["geometry"]["pixel_spacing_mm"],) * 2, case["geometry"]["slice_spacing_mm"])
        phantom = chest_phantom(subject_number(case["patient_id"]), 0, SIZE, spacing)
        np.testing.assert_array_equal(read.array[::-1, ::-1], phantom.image)
        np.testing.assert_allclose(read.spacing, spacing, rtol=1e-5)
        paddings.add(read.padding_value)
        assert (read.padding_value or -1024) == phantom.image.min()
    assert len(paddings) > 1


def test_a_reduced_chest_keeps_the_extent_of_the_real_scan(chests):
    _, cases = chests
    real = {case["case_id"]: case["geometry"] for case in read_manifest(MANIFESTS / "lidc_idri.json").cases}
    for case in cases:
        before, after = real[case["case_id"]], case["geometry"]
        assert after["pixel_spacing_mm"] * 32 == pytest.approx(before["pixel_spacing_mm"] * 512, rel=1e-4)
        extent = before["slice_spacing_mm"] * before["num_positions"]
        assert after["slice_spacing_mm"] * 12 == pytest.approx(extent, rel=1e-4)


def test_both_series_of_a_breast_study_are_there_and_register(breasts):
    root, cases = breasts
    for case in cases[:2]:
        plain, saturated = (
            read_series(root / case["patient_id"], case[key]["series_uid"]) for key in ("source", "dynamic_pre")
        )
        np.testing.assert_array_equal(plain.affine, saturated.affine)
        phantom = breast_phantom(subject_number(case["patient_id"]), 0, SIZE)
        np.testing.assert_allclose(plain.array[::-1, ::-1], np.rint(phantom.image))
        assert saturated.array.mean() < 0.7 * plain.array.mean()


def test_the_written_cases_make_a_manifest(breasts, tmp_path):
    _, cases = breasts
    metadata = read_manifest(MANIFESTS / "duke.json").metadata
    write_manifest(Manifest(metadata, tuple(cases)), tmp_path / "manifest.json")
    assert read_manifest(tmp_path / "manifest.json").counts["cases"] == 4
    assert json.loads((MANIFESTS / "duke.json").read_text())["training"][0]["source"]["num_images"] != 12


def test_a_subject_does_not_depend_on_the_other_cases(chests, tmp_path):
    root, cases = chests
    one = [case for case in read_manifest(MANIFESTS / "lidc_idri.json").cases if case["case_id"] == cases[3]["case_id"]]
    write_chest_dicom_tree(tmp_path, one, size=SIZE)
    for path in slices_of(root, cases[3]):
        assert (tmp_path / path.relative_to(root)).read_bytes() == path.read_bytes()
