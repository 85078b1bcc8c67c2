"""Whole series: read as SimpleITK reads them, and told apart in mixed folders."""

import logging
import pickle
import shutil
import tracemalloc
import warnings

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from medical_diffusion_components.dicom.series import (
    Refusal,
    SeriesRefused,
    find_series,
    read_series,
    read_volume,
    select_series,
)


def sitk_image(folder):
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


def assert_same_world(read, image, rng, tolerance=1e-4):
    """Any voxel has the value that the other reader finds at the same millimetres."""
    assert read.array.shape == image.GetSize()
    for index in rng.integers(0, read.array.shape, (200, 3)):
        world = read.affine[:3, :3] @ index + read.affine[:3, 3]
        other = image.TransformPhysicalPointToContinuousIndex((world * [-1, -1, 1]).tolist())
        nearest = np.round(other).astype(int).tolist()
        assert np.abs(np.subtract(other, nearest)).max() < tolerance
        assert image[nearest] == read.array[tuple(index)]


def refusal(folder, **options):
    with pytest.raises(SeriesRefused) as caught:
        read_series(folder, **options)
    return caught.value


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless])
def test_any_orientation_is_read_as_simpleitk_reads_it(series, case, make_affine, syntax, seed):
    rng = np.random.default_rng(seed)
    names = [f"{name}.dcm" for name in rng.permutation(30)]
    series(affine=make_affine(rng), names=names, transfer_syntax=syntax, slope=0.5, intercept=-7)
    assert_same_world(read_series(case), sitk_image(case), rng)


def test_what_was_written_is_read(series, case, volume, affine):
    series(thickness=1.25)
    read = read_series(case, modality="CT", num_slices=30)
    np.testing.assert_array_equal(read.array, volume)
    np.testing.assert_allclose(read.affine, affine, atol=1e-8)
    np.testing.assert_allclose(read.spacing, (0.7, 0.9, 2.5), rtol=1e-9)
    assert (read.thickness, read.echo_time, read.padding_value) == (1.25, None, None)


def test_a_left_handed_affine_gives_the_same_world_with_slices_reversed(series, case, volume, affine):
    affine[:, 2] *= -1
    series(affine=affine)
    read = read_series(case)
    np.testing.assert_array_equal(read.array, volume[:, :, ::-1])
    np.testing.assert_allclose(read.affine @ (0, 0, 29, 1), affine[:, 3], atol=1e-7)


def test_slices_may_have_slopes_of_their_own(series, case, volume):
    slopes = np.linspace(0.5, 2, 30)
    series(modality="PT", slope=slopes, intercept=0)
    stored = np.rint(volume / slopes)
    np.testing.assert_array_equal(read_series(case).array, (stored * slopes).astype(np.float32))


def test_padding_value_is_given_in_real_units_and_left_in_place(series, case, volume):
    volume[0, 0] = -2000

    def pad(dataset, _):
        dataset.add_new("PixelPaddingValue", "SS", -1976)

    series(volume=volume, intercept=-24, adjust=pad)
    read = read_series(case)
    assert read.padding_value == -2000
    assert (read.array[0, 0] == read.padding_value).all()


def test_foreign_files_are_left_aside_and_counted(series, case, volume):
    series()
    (case / "below").mkdir()
    for name in ("notes.txt", ".DS_Store", "LICENSE", "below/DICOMDIR", "below/list.csv"):
        (case / name).write_text("nothing to see")
    report = pydicom.dcmread(next(case.glob("*.dcm")), stop_before_pixels=True)
    del report.Rows, report.Columns
    report.SOPClassUID = report.file_meta.MediaStorageSOPClassUID = pydicom.uid.BasicTextSRStorage
    report.save_as(case / "report.dcm")
    read = read_series(case)
    np.testing.assert_array_equal(read.array, volume)
    assert read.num_other_files == 6


def test_two_series_in_a_folder_need_a_choice(series, case, volume):
    series(series_uid="1.2.3")
    series(series_uid="1.2.4", series_number=2, volume=-volume, first_instance=100)
    assert refusal(case).reason is Refusal.AMBIGUOUS
    np.testing.assert_array_equal(read_series(case, series_uid="1.2.4").array, -volume)
    assert refusal(case, series_uid="1.2.5").reason is Refusal.NO_SERIES


def test_echoes_under_one_series_are_told_apart(series, case, volume):
    for echo, time in enumerate((20.5, 10.25, 30.75)):
        options = {"first_instance": 1 + echo, "instance_step": 3, "series_uid": "1.2.3"}
        series(volume=volume + time, echo_time=time, modality="MR", slope=0.25, intercept=0, **options)
    assert [group.echo_time for group in find_series(case)] == [10.25, 20.5, 30.75]
    assert refusal(case).reason is Refusal.AMBIGUOUS
    assert refusal(case, echo_time=11).reason is Refusal.NO_SERIES
    np.testing.assert_array_equal(read_series(case, echo_time="first").array, volume + 10.25)
    np.testing.assert_array_equal(read_series(case, echo_time=30.75).array, volume + 30.75)


def test_first_echo_is_not_the_first_that_is_left(series, case):
    def second(dataset, _):
        dataset.EchoNumbers = 2

    series(modality="MR", echo_time=20, adjust=second)
    assert refusal(case, echo_time="first").reason is Refusal.NO_SERIES
    assert read_series(case, echo_time=20).echo_time == 20


@pytest.mark.parametrize("keyword", ["TemporalPositionIdentifier", "AcquisitionNumber", "ImageType"])
def test_stacks_at_the_same_place_are_separated_by_what_separates_them(series, case, volume, keyword):
    for time in (1, 2):

        def mark(dataset, _, time=time):
            setattr(dataset, keyword, ["ORIGINAL", "PRIMARY", "MW"[time - 1]] if keyword == "ImageType" else time)

        series(volume=volume * time, first_instance=1 + 100 * time, series_uid="1.2.3", adjust=mark)
    groups = find_series(case)
    assert [len(group.slices) for group in groups] == [30, 30]
    np.testing.assert_array_equal(read_volume(groups[0]).array, volume)
    np.testing.assert_array_equal(read_volume(groups[1]).array, volume * 2)
    assert refusal(case).reason is Refusal.AMBIGUOUS


def test_acquisition_numbers_alone_split_nothing(series, case, volume):
    def step_and_shoot(dataset, k):
        dataset.AcquisitionNumber = k

    series(adjust=step_and_shoot)
    np.testing.assert_array_equal(read_series(case).array, volume)


def test_localisers_of_the_series_are_passed_over(series, case, volume, affine):
    series(series_uid="1.2.3")
    series(affine=affine[:, [1, 2, 0, 3]], volume=volume[..., :2], first_instance=90, series_uid="1.2.3")
    assert sorted(len(group.slices) for group in find_series(case)) == [2, 30]
    np.testing.assert_array_equal(read_series(case).array, volume)


def test_expectations_are_checked(series, case):
    series()
    assert refusal(case, modality="MR").reason is Refusal.WRONG_MODALITY
    assert "expected 31 slices, got 30" in str(refusal(case, num_slices=31))
    groups = find_series(case)
    assert select_series(groups, num_slices=30, modality="CT") is groups[0]
    next(case.iterdir()).write_bytes(b"")
    assert refusal(case, num_slices=30).reason is Refusal.DAMAGED_FILE


def test_a_folder_without_images_is_refused_and_a_missing_one_is_an_error(case):
    case.mkdir()
    (case / "notes.txt").write_text("x")
    assert "0 damaged, 1 other files" in str(refusal(case))
    with pytest.raises(FileNotFoundError):
        read_series(case / "not there")


def test_refusals_name_no_patient_and_no_path(series, case):
    paths = series(patient_id="DOE^JANE", names=[f"DOE_{k}.dcm" for k in range(30)])
    for broken in ("unlink", "truncate"):
        if broken == "truncate":
            paths[4].write_bytes(paths[4].read_bytes()[:-9])
        else:
            paths[9].unlink()
        text = str(refusal(case))
        assert "DOE" not in text and str(case.parent) not in text
        assert "case" in text and "2.25." in text


def test_refusals_cross_process_pools(series, case):
    series()[7].unlink()
    refused = refusal(case)
    again = pickle.loads(pickle.dumps(refused))
    assert (again.reason, str(again)) == (Refusal.MISSING_SLICES, str(refused))


def test_pydicoms_remarks_do_not_leak(series, case, caplog):
    def sloppy(dataset, _):
        dataset.add_new("StudyDate", "DA", "yesterday")
        dataset.file_meta.ImplementationClassUID = "not a UID"

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        series(adjust=sloppy)
    caplog.clear()  # what pydicom had to say when writing
    with warnings.catch_warnings(), caplog.at_level(logging.DEBUG):
        warnings.simplefilter("error")
        read_series(case)
    assert not caplog.records


def test_a_file_that_changes_after_the_search_is_refused(series, case, tmp_path):
    paths = series()
    (group,) = find_series(case)
    other = series(folder=tmp_path / "other", intercept=5)
    shutil.copy(other[3], paths[3])
    with pytest.raises(SeriesRefused) as caught:
        read_volume(group)
    assert caught.value.reason is Refusal.CHANGED_FILE


def test_memory_is_the_float_volume_and_little_more(series, case):
    array = np.zeros((256, 256, 60), np.int16)
    series(volume=array)
    (group,) = find_series(case)
    tracemalloc.start()
    read = read_volume(group)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < read.array.nbytes * 1.2


def test_what_a_person_should_know_of_a_series_is_remarked_on(series, case):
    def adjust(**elements):
        return lambda dataset, _: [setattr(dataset, name, value) for name, value in elements.items()]

    wanted = {
        "derived_image": {"adjust": adjust(ImageType=["DERIVED", "SECONDARY", "MPR"])},
        "no_magnitude": {"adjust": adjust(ImageType=["ORIGINAL", "PRIMARY", "P", "ND"])},
        "was_lossy": {"adjust": adjust(LossyImageCompression="01")},
        "text_burned_in": {"adjust": adjust(BurnedInAnnotation="YES")},
        "first_slices_absent": {"first_instance": 3},
        "philips_scale": {"modality": "MR", "adjust": philips([0.5] * 30)},
    }
    for remark, options in wanted.items():
        series(**options)
        assert read_series(case).remarks == (remark,)
        shutil.rmtree(case)
    series(adjust=adjust(ImageType=["ORIGINAL", "PRIMARY"], LossyImageCompression="00", BurnedInAnnotation="NO"))
    assert read_series(case).remarks == ()


def philips(scales, creator="Philips MR Imaging DD 001"):
    def adjust(dataset, k):
        dataset.add_new(0x20050010, "LO", creator)
        if scales[k] is not None:
            dataset.add_new(0x2005100E, "FL", scales[k])

    return adjust


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_philips_scales_that_differ_between_slices_are_refused_unless_slopes_undo_them(series, case, volume, syntax):
    slopes = [1.0, 2.0] * 15
    for scales, given in (([1.0, 0.5] * 15, [1.0] * 30), ([1.0] * 29 + [None], [1.0] * 30), ([1.0] * 30, slopes)):
        options = {"modality": "MR", "transfer_syntax": syntax, "slope": given, "intercept": 0}
        series(volume=volume * given, adjust=philips(scales), **options)
        with pytest.raises(SeriesRefused, match=r"one scale of Philips \(2005,100E\)"):
            read_series(case)
    series(volume=volume * slopes, adjust=philips([1.0, 0.5] * 15), **options)
    np.testing.assert_array_equal(read_series(case).array, volume * slopes)
    series(volume=volume * slopes, adjust=philips([1.0, 0.3] * 15, "SOMEBODY ELSE"), **options)
    assert read_series(case).remarks == ()


def test_empty_slices_have_no_scale_of_philips_of_their_own(series, case, volume):
    filled = np.abs(volume)
    filled[..., :2] = 0
    series(volume=filled, slope=1, intercept=0, modality="MR", adjust=philips([None, 1.0] + [0.5] * 28))
    np.testing.assert_array_equal(read_series(case).array, filled)


def test_a_second_echo_is_no_series_without_its_beginning(series, case):
    series(modality="MR", echo_time=10.0)
    series(modality="MR", echo_time=80.0, first_instance=31)
    assert read_series(case, echo_time=80.0).remarks == ("part_of_series",)
