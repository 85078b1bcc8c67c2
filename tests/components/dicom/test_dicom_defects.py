"""Each defect that a downloaded series can have is refused, and for the right reason."""

import shutil

import numpy as np
import pydicom
import pytest
from dicom_writing import write_series
from pydicom.uid import (
    EnhancedCTImageStorage,
    JPEGBaseline8Bit,
    JPEGLSNearLossless,
    LegacyConvertedEnhancedCTImageStorage,
)

from medical_diffusion_components.dicom.series import Refusal, SeriesRefused, find_series, read_series


def edit(path, **values):
    dataset = pydicom.dcmread(path)
    for keyword, value in values.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    dataset.save_as(path)


def shift(path, row=0.0, column=0.0, normal=0.0):
    """Move a slice along its own axes, mm."""
    dataset = pydicom.dcmread(path, stop_before_pixels=True)
    axes = np.reshape(dataset.ImageOrientationPatient, (2, 3)).astype(float)
    axes = np.vstack([axes, np.cross(*axes)])
    position = np.add(dataset.ImagePositionPatient, np.array([row, column, normal]) @ axes)
    edit(path, ImagePositionPatient=[f"{x:.6f}" for x in position])


def swap_positions(paths):
    a, b = (pydicom.dcmread(paths[k], stop_before_pixels=True).ImagePositionPatient for k in (9, 12))
    edit(paths[9], ImagePositionPatient=b)
    edit(paths[12], ImagePositionPatient=a)


def spread(paths, factor):
    for k, path in enumerate(paths):
        shift(path, normal=factor * k * k)


def unlink(*paths):
    for path in paths:
        path.unlink()


def cut(path, length):
    path.write_bytes(path.read_bytes()[:length])


DEFECTS = {
    "two slices missing": (lambda p: unlink(p[11], p[12]), Refusal.MISSING_SLICES),
    "every other slice missing": (lambda p: unlink(*p[1::2]), Refusal.MISSING_SLICES),
    "a file twice": (lambda p: shutil.copy(p[3], p[3].with_name("x.dcm")), Refusal.DUPLICATE_SLICES),
    "a position twice": (lambda p: shift(p[4], normal=2.5), Refusal.DUPLICATE_SLICES),
    "a series twice": (lambda p: shutil.copytree(p[0].parent, p[0].parent / "copy"), Refusal.DUPLICATE_SLICES),
    "growing distances": (lambda p: spread(p, 0.01), Refusal.NON_UNIFORM_SPACING),
    "a slice out of place": (lambda p: shift(p[5], normal=0.8), Refusal.NON_UNIFORM_SPACING),
    "a slice aside": (lambda p: shift(p[5], row=0.3), Refusal.IN_PLANE_DRIFT),
    "the last slice aside": (lambda p: shift(p[-1], column=0.3), Refusal.IN_PLANE_DRIFT),
    "sheared by the gantry": (lambda p: [shift(q, column=0.4 * k) for k, q in enumerate(p)], Refusal.GANTRY_TILT),
    "a tilt that the positions lack": (lambda p: [edit(q, GantryDetectorTilt=12) for q in p], Refusal.GANTRY_TILT),
    "two slices exchanged": (swap_positions, Refusal.ORDER_CONFLICT),
    "no position": (lambda p: edit(p[6], ImagePositionPatient=None), Refusal.MISSING_TAG),
    "no position in the last": (lambda p: edit(p[-1], ImagePositionPatient=None), Refusal.MISSING_TAG),
    "no orientation at all": (lambda p: [edit(q, ImageOrientationPatient=None) for q in p], Refusal.MISSING_TAG),
    "no pixel spacing": (lambda p: [edit(q, PixelSpacing=None) for q in p], Refusal.MISSING_TAG),
    "another pixel spacing": (lambda p: edit(p[6], PixelSpacing=[0.9, 0.71]), Refusal.INCONSISTENT_HEADERS),
    "a slice of another patient": (lambda p: edit(p[6], PatientID="OTHER"), Refusal.INCONSISTENT_HEADERS),
    "a slice of another study": (lambda p: edit(p[6], StudyInstanceUID="1.2"), Refusal.INCONSISTENT_HEADERS),
    "a slice of another modality": (lambda p: edit(p[6], Modality="MR"), Refusal.INCONSISTENT_HEADERS),
    "another sign": (lambda p: edit(p[6], PixelRepresentation=0), Refusal.INCONSISTENT_HEADERS),
    "another intercept": (lambda p: edit(p[6], RescaleIntercept=-1000), Refusal.INCONSISTENT_RESCALE),
    "no slope in a slice": (lambda p: edit(p[6], RescaleSlope=None), Refusal.INCONSISTENT_RESCALE),
    "a slope of zero": (lambda p: [edit(q, RescaleSlope=0) for q in p], Refusal.INCONSISTENT_RESCALE),
    "a slope beyond float32": (lambda p: [edit(q, RescaleSlope="1e38") for q in p], Refusal.INCONSISTENT_RESCALE),
    "the last slice in another series": (lambda p: edit(p[-1], SeriesInstanceUID="1.2"), Refusal.STRAY_SLICES),
    "the last slice in another echo": (lambda p: edit(p[-1], EchoTime=7), Refusal.STRAY_SLICES),
    "the last slice turned": (
        lambda p: edit(p[-1], ImageOrientationPatient=[1, 0, 0, 0, 1, 0]),
        Refusal.STRAY_SLICES,
    ),
    "the last slice of another size": (lambda p: edit(p[-1], Rows=10, Columns=20), Refusal.STRAY_SLICES),
    "half in another series": (
        lambda p: [edit(q, SeriesInstanceUID="9.9") for q in p[15:]],
        Refusal.STRAY_SLICES,
    ),
    "the last file empty": (lambda p: p[-1].write_bytes(b""), Refusal.DAMAGED_FILE),
    "the last file cut in its header": (lambda p: cut(p[-1], 700), Refusal.DAMAGED_FILE),
    "a file cut in its pixels": (lambda p: cut(p[6], -10), Refusal.DAMAGED_PIXELS),
    "all files cut": (lambda p: [cut(q, 1300) for q in p], Refusal.DAMAGED_PIXELS),
    "an error page for the last file": (lambda p: p[-1].write_text("<html>503</html>"), Refusal.DAMAGED_FILE),
    "a dangling link": (lambda p: (p[-1].unlink(), p[-1].symlink_to("nowhere")), Refusal.DAMAGED_FILE),
    "wrong size in all": (lambda p: [edit(q, Rows=19) for q in p], Refusal.DAMAGED_PIXELS),
    "huge size in all": (lambda p: [edit(q, Rows=60000, Columns=60000) for q in p], Refusal.UNSUPPORTED_PIXELS),
    "two slices only": (lambda p: unlink(*p[2:]), Refusal.TOO_FEW_SLICES),
    "one slice only": (lambda p: unlink(*p[1:]), Refusal.TOO_FEW_SLICES),
    "several frames": (lambda p: [edit(q, NumberOfFrames=2) for q in p], Refusal.MULTI_FRAME),
    "inverted grey scale": (
        lambda p: [edit(q, PhotometricInterpretation="MONOCHROME1") for q in p],
        Refusal.UNSUPPORTED_PIXELS,
    ),
    "colour": (
        lambda p: [edit(q, PhotometricInterpretation="RGB", SamplesPerPixel=3) for q in p],
        Refusal.UNSUPPORTED_PIXELS,
    ),
    "bits beyond those stored": (lambda p: [edit(q, BitsStored=10, HighBit=9) for q in p], Refusal.UNSUPPORTED_PIXELS),
    "a high bit elsewhere": (lambda p: [edit(q, BitsStored=12) for q in p], Refusal.UNSUPPORTED_PIXELS),
}


@pytest.fixture(scope="module")
def whole_series(tmp_path_factory, make_affine):
    """A series without defects, written once and copied for each of them."""
    folder = tmp_path_factory.mktemp("whole")
    volume = np.random.default_rng(0).integers(-1024, 2000, (10, 20, 30)).astype(np.float32)
    write_series(folder, volume, make_affine(np.random.default_rng(1)), series_uid="1.2.840.5")
    np.testing.assert_array_equal(read_series(folder).array, volume)
    return folder


@pytest.mark.parametrize("name", DEFECTS)
def test_defect_is_refused(whole_series, case, name):
    spoil, expected = DEFECTS[name]
    shutil.copytree(whole_series, case)
    spoil(sorted(case.iterdir()))
    with pytest.raises(SeriesRefused) as caught:
        read_series(case, series_uid="1.2.840.5")
    assert caught.value.reason is expected, str(caught.value)


@pytest.mark.parametrize("keyword", ["PatientID", "StudyInstanceUID", "FrameOfReferenceUID"])
def test_a_refusal_shows_no_identifier_that_differs(whole_series, case, keyword):
    shutil.copytree(whole_series, case)
    edit(sorted(case.iterdir())[6], **{keyword: "9.8.7.6"})
    with pytest.raises(SeriesRefused, match="differs between slices") as caught:
        read_series(case)
    before = str(pydicom.dcmread(next(whole_series.iterdir()))[keyword].value)
    assert "9.8.7.6" not in str(caught.value) and before not in str(caught.value)


def test_gaps_are_counted_and_located(series, case, volume):
    paths = series(affine=np.diag([-1.0, -1, 2.5, 1]))
    unlink(paths[11], paths[12], paths[20])
    with pytest.raises(SeriesRefused, match=r"3 slices missing in 2 gaps, the first between 25\.000 and 32\.500 mm"):
        read_series(case)


def test_tilt_is_measured(series, case):
    affine = np.diag([-1.0, -1, 2.0, 1])
    affine[1, 2] = 2 * np.tan(np.radians(15))
    series(affine=affine)
    with pytest.raises(SeriesRefused, match="stacked at 15 degrees to their normal"):
        read_series(case)


def test_rounded_positions_are_no_defect(series, case, volume, affine):
    def rounded(dataset, _):
        dataset.ImagePositionPatient = [f"{float(x):.2f}" for x in dataset.ImagePositionPatient]

    series(adjust=rounded)
    read = read_series(case)
    np.testing.assert_array_equal(read.array, volume)
    np.testing.assert_allclose(read.affine, affine, atol=0.01)


def test_numbering_in_another_order_is_no_defect_if_slice_locations_confirm_the_positions(series, case, volume):
    numbers = np.random.default_rng(0).permutation(30) + 1

    def renumber(dataset, k):
        dataset.InstanceNumber, dataset.SliceLocation = int(numbers[k]), f"{-2.5 * k}"

    series(adjust=renumber)
    np.testing.assert_array_equal(read_series(case).array, volume)


def test_numbering_in_steps_is_no_defect_if_the_header_states_the_distance(series, case, volume):
    def state(dataset, _):
        dataset.SpacingBetweenSlices = 2.5

    series(instance_step=8, thickness=1, adjust=state)
    np.testing.assert_array_equal(read_series(case).array, volume)


def test_a_damaged_file_in_the_folder_of_another_series_is_no_defect(series, case, volume):
    series(folder=case / "a", series_uid="1.2.3")
    series(folder=case / "b", series_uid="1.2.4", series_number=2)[5].write_bytes(b"")
    np.testing.assert_array_equal(read_series(case, series_uid="1.2.3").array, volume)
    with pytest.raises(SeriesRefused, match="1 damaged or unreadable files"):
        read_series(case, series_uid="1.2.4")


def test_a_longer_series_on_the_same_grid_is_no_defect(series, case, volume):
    series(series_uid="1.2.3", volume=volume[..., :20])
    series(series_uid="1.2.4", series_number=2, first_instance=100)
    np.testing.assert_array_equal(read_series(case, series_uid="1.2.3").array, volume[..., :20])


@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, JPEGLSNearLossless])
def test_lossy_compression_is_refused_by_name(series, case, syntax):
    def claim(dataset, _):
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xd9"])
        dataset["PixelData"].VR = "OB"

    series(adjust=claim)
    with pytest.raises(SeriesRefused, match="got JPEG") as caught:
        read_series(case)
    assert caught.value.reason is Refusal.UNSUPPORTED_COMPRESSION


def test_enhanced_multi_frame_objects_are_refused_as_such(series, case):
    paths = series()
    unlink(*paths[1:])
    dataset = pydicom.dcmread(paths[0])
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    dataset.NumberOfFrames = 30
    dataset.PixelData = dataset.PixelData * 30
    del dataset.ImagePositionPatient, dataset.ImageOrientationPatient, dataset.PixelSpacing
    dataset.save_as(paths[0])
    assert len(find_series(case)) == 1
    with pytest.raises(SeriesRefused, match="got 30 frames") as caught:
        read_series(case)
    assert caught.value.reason is Refusal.MULTI_FRAME


def test_enhanced_objects_of_one_frame_are_refused_as_such_and_not_for_what_they_lack(series, case):
    for path in series():
        dataset = pydicom.dcmread(path)
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = LegacyConvertedEnhancedCTImageStorage
        dataset.NumberOfFrames = 1
        del dataset.ImagePositionPatient, dataset.ImageOrientationPatient, dataset.PixelSpacing
        dataset.save_as(path)
    with pytest.raises(SeriesRefused, match="1 frames of an enhanced .* dcm2niix") as caught:
        read_series(case)
    assert caught.value.reason is Refusal.MULTI_FRAME


@pytest.mark.parametrize("share", [0.01, 0.03, -0.03])
def test_a_slice_may_lie_two_percent_of_the_spacing_from_its_place(whole_series, tmp_path, share):
    """The middle one of 30: least squares move the grid by a thirtieth of what it is out of place."""
    folder = shutil.copytree(whole_series, tmp_path / "copy")
    paths = sorted(folder.iterdir())
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in paths]
    step = np.linalg.norm(np.subtract(headers[1].ImagePositionPatient, headers[0].ImagePositionPatient))
    shift(paths[15], normal=share * step)
    if abs(share) < 0.02:
        assert read_series(folder).array.shape == (10, 20, 30)
    else:
        with pytest.raises(SeriesRefused) as refused:
            read_series(folder)
        assert refused.value.reason == Refusal.NON_UNIFORM_SPACING
