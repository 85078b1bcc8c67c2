"""Series as written: read back by independent readers, and refused where DICOM cannot hold them."""

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_writing import stable_uid


def test_simpleitk_finds_values_and_geometry_as_given(series, case, volume, affine):
    series(slope=0.25, intercept=-100)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(case)))
    image = reader.Execute()
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image).T, volume)
    for index in ((0, 0, 0), (9, 0, 0), (0, 19, 0), (0, 0, 29), (3, 4, 5)):
        world = np.array(image.TransformIndexToPhysicalPoint(index)) * [-1, -1, 1]
        np.testing.assert_allclose(world, (affine @ (*index, 1))[:3], atol=1e-5)


def test_writing_twice_gives_the_same_bytes(series, tmp_path):
    first, second = (series(folder=tmp_path / name) for name in "ab")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_identifiers_differ_between_patients_series_and_slices(series, tmp_path):
    headers = []
    for patient, number in (("A", 1), ("A", 2), ("B", 1)):
        paths = series(folder=tmp_path / f"{patient}{number}", patient_id=patient, series_number=number)
        headers += [pydicom.dcmread(path, stop_before_pixels=True) for path in paths]
    assert len({h.SOPInstanceUID for h in headers}) == 90
    assert len({h.SeriesInstanceUID for h in headers}) == 3
    assert len({h.StudyInstanceUID for h in headers}) == 2
    assert max(len(h.SOPInstanceUID) for h in headers) <= 64
    assert stable_uid("a", "bc") != stable_uid("ab", "c")


def test_only_ct_gets_a_rescale_that_was_not_asked_for(series, tmp_path):
    ct, mr = (pydicom.dcmread(series(folder=tmp_path / m, modality=m)[0]) for m in ("CT", "MR"))
    assert (ct.RescaleSlope, ct.RescaleIntercept, ct.RescaleType) == (1, 0, "HU")
    assert "RescaleSlope" not in mr


def test_no_temporary_file_is_left(series, case):
    paths = series(names=[f"{29 - k}.ima" for k in range(30)])
    assert sorted(case.iterdir()) == sorted(paths)
    assert paths[0].name == "29.ima"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"signed": False}, r"stored values must lie in \[0, 65535\]"),
        ({"bits_stored": 11}, r"stored values must lie in \[-1024, 1023\]"),
        ({"volume": np.full((2, 3, 4), np.nan)}, "stored values must lie"),
        ({"bits_stored": 17}, "17"),
        ({"modality": "US"}, "'US'"),
        ({"transfer_syntax": "1.2.840.10008.1.2.4.50"}, "4.50"),
        ({"names": ["a.dcm"] * 30}, "expected 30 different file names, got 1"),
        ({"volume": np.zeros((3, 4))}, r"got \(3, 4\)"),
        ({"affine": np.array([[1, 0.5, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])}, "orthogonal"),
    ],
)
def test_what_dicom_cannot_hold_is_refused(series, options, message):
    with pytest.raises(ValueError, match=message):
        series(**options)
