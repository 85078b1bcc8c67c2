"""Series that are written lie in the patient where the volume does, and are turned as radiologists look at them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import UID, MRImageStorage

from medical_diffusion_components.dicom.series import read_series
from medical_diffusion_components.dicom.writing import derived_uid, series_images, write_series

sitk = pytest.importorskip("SimpleITK", reason="SimpleITK, the other reader of DICOM, is not installed")

SHAPE, SPACING = (5, 7, 4), (0.7, 1.1, 3.3)
OBLIQUE = np.linalg.qr(np.random.default_rng(5).normal(size=(3, 3)) * 0.2 + np.eye(3))[0]
AXES = {"RAS": (0, 1, 2, 1, 1, 1), "PSR": (1, 2, 0, -1, 1, 1), "LIA": (0, 2, 1, -1, -1, 1), "SPL": (2, 1, 0, 1, -1, -1)}


def header() -> Dataset:
    made = Dataset()
    made.SOPClassUID, made.Modality = MRImageStorage, "MR"
    made.SeriesInstanceUID, made.StudyInstanceUID = derived_uid("series"), derived_uid("study")
    made.FrameOfReferenceUID = derived_uid("frame")
    made.PatientID = made.PatientName = "NOBODY"
    return made


def affine_of(axcodes: str, rotation: np.ndarray | None = None) -> np.ndarray:
    *axes, a, b, c = AXES[axcodes]
    affine = np.eye(4)
    affine[:3, :3] = 0
    for column, (axis, sign) in enumerate(zip(axes, (a, b, c))):
        affine[axis, column] = sign * SPACING[column]
    if rotation is not None:
        affine[:3, :3] = rotation @ affine[:3, :3]
    affine[:3, 3] = 11.5, -7.25, 3.125
    return affine


def volume() -> np.ndarray:
    return np.random.default_rng(1).permutation(np.prod(SHAPE)).reshape(SHAPE).astype(np.int16) - 70


def in_world(array: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """(N, 4): where each voxel lies in mm, and its value, in the order of the values."""
    index = np.stack(np.indices(array.shape), -1).reshape(-1, 3)
    rows = np.c_[index @ affine[:3, :3].T + affine[:3, 3], array.reshape(-1)]
    return rows[np.argsort(rows[:, 3])]


@pytest.mark.parametrize("rotation", [None, OBLIQUE], ids=["straight", "oblique"])
@pytest.mark.parametrize("axcodes", AXES)
def test_every_voxel_keeps_its_place_for_our_reader_and_for_simpleitk(
    axcodes: str, rotation: np.ndarray | None, tmp_path: Path
) -> None:
    affine = affine_of(axcodes, rotation)
    expected = in_world(volume(), affine)
    write_series(tmp_path, volume(), affine, header())
    ours = read_series(tmp_path)
    np.testing.assert_allclose(in_world(ours.array, ours.affine), expected, rtol=0, atol=1e-4)
    image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path)))
    theirs = np.eye(4)
    theirs[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    theirs[:3, 3] = image.GetOrigin()
    array = sitk.GetArrayFromImage(image).T
    np.testing.assert_allclose(in_world(array, np.diag([-1, -1, 1, 1]) @ theirs), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("axcodes", "row", "column"), [
    ("RAS", (1, 0, 0), (0, 1, 0)),  # axial: left to the right, back below
    ("LIA", (1, 0, 0), (0, 0, -1)),  # coronal: left to the right, feet below
    ("PSR", (0, 1, 0), (0, 0, -1)),  # sagittal: back to the right, feet below
    ("SPL", (0, 1, 0), (0, 0, -1)),
])  # fmt: skip
def test_slices_are_turned_as_radiologists_look_at_them(axcodes: str, row: tuple, column: tuple) -> None:
    images = list(series_images(volume(), affine_of(axcodes), header()))
    assert len(images) == SHAPE[2]
    for image in images:
        assert list(image.ImageOrientationPatient) == [*row, *column]
        assert image.SliceThickness == SPACING[2]
        assert "-0.0" not in str(image.ImageOrientationPatient)


def test_slices_have_numbers_and_identifiers_of_their_own(tmp_path: Path) -> None:
    paths = write_series(tmp_path, volume(), affine_of("RAS"), header())
    read = [pydicom.dcmread(path) for path in paths]
    assert [int(image.InstanceNumber) for image in read] == [1, 2, 3, 4]
    assert len({image.SOPInstanceUID for image in read}) == 4
    assert {image.SeriesInstanceUID for image in read} == {derived_uid("series")}
    for image in read:
        assert image.file_meta.MediaStorageSOPInstanceUID == image.SOPInstanceUID


def test_the_same_volume_gives_the_same_bytes(tmp_path: Path) -> None:
    first = write_series(tmp_path / "a", volume(), affine_of("RAS"), header())
    again = write_series(tmp_path / "b", volume(), affine_of("RAS"), header())
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]


def test_identifiers_follow_from_their_parts() -> None:
    uid = derived_uid("weights", 7)
    assert uid == derived_uid("weights", 7) != derived_uid("weights", 8)
    assert derived_uid("ab", "c") != derived_uid("a", "bc")
    assert uid.startswith("2.25.") and UID(uid).is_valid and int(uid[5:]) < 2**128


@pytest.mark.parametrize(("stored", "affine", "message"), [
    (volume().astype(np.float32), affine_of("RAS"), "int16 or uint16"),
    (volume()[0], affine_of("RAS"), "H, W, D"),
    (volume(), affine_of("RAS") + np.eye(4, k=1), "right angles"),
    (volume(), np.zeros((4, 4)), "right angles"),
])  # fmt: skip
def test_what_dicom_cannot_say_is_refused(stored: np.ndarray, affine: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        next(series_images(stored, affine, header()))
