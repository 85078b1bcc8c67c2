"""Stored values of every encoding that is read."""

import base64
import sys
import tracemalloc

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from medical_diffusion_components.dicom import itk_decoder as dicom_itk
from medical_diffusion_components.dicom.series import Refusal, SeriesRefused, read_series

# JPEG-LS stream of a 6 x 5 image of 12 bits, by CharLS
JPEG_LS = "/9j/9wALCwAGAAUBAREA/9oACAEBAAAAAIpKUdFABkVJCMVAAyREJASDw/fPSMt3js0RFsZMFyEA/9k="


def compressed_by_itk(stored, compressor, path):
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.UseCompressionOn()
    writer.SetCompressor(compressor)
    writer.SetFileName(str(path))
    writer.Execute(sitk.GetImageFromArray(stored[None]))
    return pydicom.dcmread(path)


def put_pixels(dataset, encapsulated, syntax):
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulated
    dataset["PixelData"].VR = "OB"


@pytest.mark.slow
def test_lossless_jpeg_is_decoded_before_slope_and_intercept(series, case, volume, tmp_path):
    def compress(dataset, k):
        stored = np.frombuffer(dataset.PixelData, np.int16).reshape(20, 10)
        source = compressed_by_itk(stored, ("JPEG", "JPEG2000")[k % 2], tmp_path / "slice.dcm")
        put_pixels(dataset, source.PixelData, source.file_meta.TransferSyntaxUID)

    paths = series(volume=volume[..., :4] * 0.5, slope=0.5, intercept=-8, adjust=compress)
    syntaxes = [pydicom.dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID for path in paths]
    assert syntaxes == [JPEGLosslessSV1, JPEG2000Lossless] * 2
    np.testing.assert_array_equal(read_series(case).array, volume[..., :4] * 0.5)


def test_jpeg_ls_is_decoded(series, case):
    stored = np.arange(30).reshape(6, 5) * 37 % 4096

    def compress(dataset, _):
        put_pixels(dataset, pydicom.encaps.encapsulate([base64.b64decode(JPEG_LS)]), JPEGLSLossless)

    options = {"bits_stored": 12, "signed": False, "intercept": -1000, "adjust": compress}
    series(volume=np.zeros((5, 6, 3)) - 1000, **options)
    np.testing.assert_array_equal(read_series(case).array[:, :, 1], stored.T - 1000)


def test_without_itk_lossless_jpeg_is_refused_by_name(series, case, monkeypatch):
    def compress(dataset, _):
        put_pixels(dataset, pydicom.encaps.encapsulate([base64.b64decode(JPEG_LS)]), JPEGLSLossless)

    series(volume=np.zeros((5, 6, 3)), bits_stored=12, adjust=compress)
    monkeypatch.setitem(sys.modules, "itk", None)
    with pytest.raises(SeriesRefused, match="JPEG-LS Lossless Image Compression needs the package itk") as caught:
        read_series(case)
    assert caught.value.reason is Refusal.UNSUPPORTED_COMPRESSION


@pytest.mark.parametrize("content", [b"\0\0", b"\xff\xd8\xff\xd9" * 20])
def test_damaged_rle_is_refused(series, case, content):
    def damage(dataset, _):
        put_pixels(dataset, pydicom.encaps.encapsulate([content]), RLELossless)

    series(adjust=damage)
    with pytest.raises(SeriesRefused) as caught:
        read_series(case)
    assert caught.value.reason is Refusal.DAMAGED_PIXELS


@pytest.mark.parametrize(
    ("ending", "limit_s", "cause"),
    [("os.kill(os.getpid(), signal.SIGSEGV)", 60.0, "SIGSEGV"), ("time.sleep(60)", 1.0, "timed out")],
)
def test_a_decoder_that_crashes_or_hangs_is_a_refusal(series, case, tmp_path, monkeypatch, ending, limit_s, cause):
    def compress(dataset, _):
        put_pixels(dataset, pydicom.encaps.encapsulate([base64.b64decode(JPEG_LS)[:40]]), JPEGLSLossless)

    series(volume=np.zeros((5, 6, 3)), bits_stored=12, adjust=compress)
    (tmp_path / "itk.py").write_text(f"import os, signal, time\n{ending}\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(dicom_itk, "_START_S", limit_s)
    monkeypatch.setattr(dicom_itk, "_SLICE_S", 0.0)
    with pytest.raises(SeriesRefused) as caught:
        read_series(case)
    assert caught.value.reason is Refusal.DAMAGED_PIXELS
    causes, error = [], caught.value
    while error := error.__cause__:
        causes.append(str(error))
    assert cause in causes[-1]


@pytest.mark.parametrize("syntax", [DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless])
@pytest.mark.parametrize(("bits", "signed"), [(12, False), (12, True), (16, False), (16, True), (9, True)])
def test_any_number_of_bits_is_read(series, case, syntax, bits, signed):
    low = -(1 << (bits - 1)) if signed else 0
    volume = np.random.default_rng(0).integers(low, low + (1 << bits), (5, 7, 4))
    volume[0, 0] = low
    volume[1, 1] = low + (1 << bits) - 1
    series(volume=volume, bits_stored=bits, signed=signed, transfer_syntax=syntax)
    np.testing.assert_array_equal(read_series(case).array, volume)


def test_the_sign_is_that_of_the_highest_stored_bit_where_the_bits_above_are_zero(series, case):
    volume = np.random.default_rng(0).integers(-2048, 2048, (5, 7, 4))

    def clear(dataset, _):
        words = np.frombuffer(dataset.PixelData, np.uint16) & 0x0FFF
        dataset.PixelData = words.tobytes()

    series(volume=volume, bits_stored=12, adjust=clear)
    np.testing.assert_array_equal(read_series(case).array, volume)


def test_eight_bits_with_an_odd_number_of_pixels_are_read(series, case):
    volume = np.random.default_rng(0).integers(0, 256, (5, 7, 4))

    def to_bytes(dataset, _):
        dataset.BitsAllocated = 8
        dataset.PixelData = np.frombuffer(dataset.PixelData, np.uint16).astype(np.uint8).tobytes() + b"\0"

    series(volume=volume, bits_stored=8, signed=False, adjust=to_bytes)
    np.testing.assert_array_equal(read_series(case).array, volume)


def test_size_is_checked_before_memory_is_taken(series, case):
    def grow(dataset, _):
        dataset.Rows = dataset.Columns = 8000

    series(adjust=grow)
    tracemalloc.start()
    with pytest.raises(SeriesRefused, match="8000 x 8000 pixels need 128000000 bytes, the whole file has"):
        read_series(case)
    assert tracemalloc.get_traced_memory()[1] < 10e6  # bytes
    tracemalloc.stop()


def eight_bit(path, syntax, vr):
    """The slice of 16 bits as one of 8, in an uncompressed syntax, bytes ordered as PS3.5 annex A says."""
    dataset = pydicom.dcmread(path)
    pixels = (np.frombuffer(dataset.PixelData, "<i2") % 251).astype(np.uint8)
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    swapped = syntax == ExplicitVRBigEndian and vr == "OW"
    dataset.PixelData = pixels.view("<u2").byteswap().tobytes() if swapped else pixels.tobytes()
    dataset["PixelData"].VR = vr
    dataset.file_meta.TransferSyntaxUID = syntax
    little, implicit = syntax != ExplicitVRBigEndian, syntax == ImplicitVRLittleEndian
    pydicom.dcmwrite(path, dataset, little_endian=little, implicit_vr=implicit, force_encoding=True)
    return pixels.reshape(dataset.Rows, dataset.Columns)


@pytest.mark.parametrize(
    ("syntax", "vr"),
    [
        (ImplicitVRLittleEndian, "OW"),
        (ExplicitVRLittleEndian, "OB"),
        (ExplicitVRLittleEndian, "OW"),
        (ExplicitVRBigEndian, "OB"),
        (ExplicitVRBigEndian, "OW"),
    ],
)
def test_8_bits_are_read_as_pydicom_and_simpleitk_read_them(series, case, volume, syntax, vr):
    paths = series(volume=volume[..., :4], intercept=0, slope=1)
    stored = [eight_bit(path, syntax, vr) for path in paths]
    got = read_series(case).array
    np.testing.assert_array_equal(got, np.stack(stored).T)
    for index, path in enumerate(paths):
        np.testing.assert_array_equal(pydicom.dcmread(path).pixel_array, got[..., index].T)
        if vr == "OW":  # ITK takes bytes of "OB" for words, too
            np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path)))[0], got[..., index].T)


@pytest.mark.parametrize(("extra", "is_read"), [(2, True), (18, True), (20, False), (40, False)])
def test_bytes_after_the_last_pixel_are_allowed_unless_they_could_be_a_row_or_a_column(
    series, case, volume, extra, is_read
):
    def lengthen(dataset, _):
        dataset.PixelData += bytes(extra)  # a column of 10 pixels has 20 bytes

    series(adjust=lengthen)
    if is_read:
        np.testing.assert_array_equal(read_series(case).array, volume)
    else:
        with pytest.raises(SeriesRefused, match="are 400 bytes, got"):
            read_series(case)


def test_empty_slices_have_no_scale_of_their_own_in_mr(series, case, volume):
    stored = np.abs(volume[..., :10])
    stored[..., :6] = 0
    slopes = [1.0] * 6 + [0.5, 0.25, 0.5, 0.125]
    series(volume=stored * slopes, slope=slopes, intercept=0, modality="MR")
    np.testing.assert_array_equal(read_series(case).array, stored * slopes)


def test_one_slope_that_differs_in_a_slice_with_pixels_is_refused(series, case, volume):
    stored = np.abs(volume[..., :10])
    slopes = [0.5] * 9 + [0.25]
    series(volume=stored * slopes, slope=slopes, intercept=0, modality="MR")
    with pytest.raises(SeriesRefused) as caught:
        read_series(case)
    assert caught.value.reason is Refusal.INCONSISTENT_RESCALE


@pytest.mark.parametrize("content", [b"%PDF-1.7 report", b"PK\3\4 archive", b"\x89PNG picture"])
def test_a_document_beside_slices_without_suffix_is_no_lost_slice(series, case, volume, content):
    series(names=[f"IM{k:04d}" for k in range(30)])
    (case / "REPORT").write_bytes(content.ljust(200))
    assert read_series(case).num_other_files == 1


def test_a_table_of_values_instead_of_slope_and_intercept_is_refused(series, case):
    def adjust(dataset, _):
        table = pydicom.Dataset()
        table.LUTDescriptor, table.ModalityLUTType = [4, 0, 16], "US"
        table.add_new(0x00283006, "OW", np.arange(4, dtype="<u2").tobytes())
        dataset.ModalityLUTSequence = [table]

    series(modality="MR", adjust=adjust)
    with pytest.raises(SeriesRefused, match="got a table of values"):
        read_series(case)
