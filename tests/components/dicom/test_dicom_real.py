"""Real volumes: the knee MR of ``mskt`` as it came, the thorax CT of ``pyradiomics`` written out with defects."""

import shutil

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_writing import write_series
from pydicom.uid import ExplicitVRBigEndian, RLELossless

from medical_diffusion_components.dicom.series import Refusal, SeriesRefused, find_series, read_series

pytestmark = pytest.mark.slow
ECHO_TIMES = [6.312, 12.624, 18.936, 25.248, 31.56, 37.872, 44.184, 50.496]


def world_of(image, index):
    return np.array(image.TransformIndexToPhysicalPoint([int(i) for i in index])) * [-1, -1, 1]


@pytest.fixture(scope="module")
def thorax(thorax_file):
    """Hounsfield units (512, 512, 48) and affine in RAS."""
    image = sitk.ReadImage(str(thorax_file))
    affine = np.diag([*image.GetSpacing(), 1.0])
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image).T, np.diag([-1.0, -1, 1, 1]) @ affine


@pytest.fixture(scope="module")
def thorax_folder(thorax, tmp_path_factory):
    """All slices, cropped in their plane."""
    volume, affine = thorax
    cropped = affine.copy()
    cropped[:, 3] = affine @ (150, 200, 0, 1)
    folder = tmp_path_factory.mktemp("thorax") / "series"
    write_series(folder, volume[150:270, 200:300], cropped, intercept=-1024, signed=False, bits_stored=12)
    return folder


def test_echoes_of_the_knee_are_found(knee_folder):
    groups = find_series(knee_folder)
    assert [group.echo_time for group in groups] == ECHO_TIMES
    assert {len(group.slices) for group in groups} == {24}
    with pytest.raises(SeriesRefused, match="8 volumes") as caught:
        read_series(knee_folder)
    assert caught.value.reason is Refusal.AMBIGUOUS


@pytest.mark.parametrize("echo", [0, 5])
def test_an_echo_of_the_knee_is_read_as_simpleitk_reads_it(knee_folder, echo):
    headers = {path: pydicom.dcmread(path, stop_before_pixels=True) for path in knee_folder.iterdir()}
    wanted = [path for path, header in headers.items() if header.EchoTime == ECHO_TIMES[echo]]
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(p) for p in sorted(wanted, key=lambda p: headers[p][0x00209057].value)])
    image = reader.Execute()
    read = read_series(knee_folder, echo_time=ECHO_TIMES[echo] if echo else "first", modality="MR", num_slices=24)
    np.testing.assert_array_equal(read.array, sitk.GetArrayFromImage(image).T)
    for index in np.random.default_rng(0).integers(0, read.array.shape, (50, 3)):
        # positions are rounded to 0.0001 mm where x is under 100 mm, else to 0.001 mm
        np.testing.assert_allclose((read.affine @ (*index, 1))[:3], world_of(image, index), atol=2e-3)
    assert read.spacing == pytest.approx((0.625, 0.625, 4), abs=1e-4)
    assert read.thickness == 3


def test_a_slice_lost_from_one_echo_spoils_that_echo_alone(knee_folder, tmp_path):
    folder = tmp_path / "knee"
    shutil.copytree(knee_folder, folder)
    for path in folder.iterdir():
        header = pydicom.dcmread(path, stop_before_pixels=True)
        if header.EchoTime == ECHO_TIMES[1] and header[0x00209057].value in (1, 24):
            path.unlink()  # both ends: the rest is uniform, only the other echoes tell
    with pytest.raises(SeriesRefused) as caught:
        read_series(folder, echo_time=ECHO_TIMES[1])
    assert caught.value.reason is Refusal.STRAY_SLICES
    assert read_series(folder, echo_time="first").array.shape == (256, 256, 24)


@pytest.mark.parametrize(("syntax", "slices"), [(ExplicitVRBigEndian, 48), (RLELossless, 4)])
def test_the_thorax_survives_dicom(thorax, tmp_path, syntax, slices):
    volume, affine = thorax
    volume = volume[..., :slices]
    write_series(tmp_path / "ct", volume, affine, transfer_syntax=syntax, intercept=-1024, thickness=6)
    read = read_series(tmp_path / "ct", modality="CT", num_slices=slices)
    np.testing.assert_array_equal(read.array, volume)
    np.testing.assert_allclose(read.affine, affine, atol=1e-6)
    assert (read.thickness, read.spacing[2]) == (6, pytest.approx(5))


DEFECTS = {
    "missing": (lambda p: p[20].unlink(), Refusal.MISSING_SLICES),
    "every other missing": (lambda p: [q.unlink() for q in p[::2]], Refusal.MISSING_SLICES),
    "repeated": (lambda p: shutil.copy(p[20], p[20].with_name("again.dcm")), Refusal.DUPLICATE_SLICES),
    "uneven": (lambda p: move(p[30:], 0, 0, 2), Refusal.NON_UNIFORM_SPACING),
    "aside": (lambda p: move(p[7:8], 1, 0, 0), Refusal.IN_PLANE_DRIFT),
    "tilted": (lambda p: [move([q], 0, k * 0.5, 0) for k, q in enumerate(p)], Refusal.GANTRY_TILT),
    "cut": (lambda p: p[5].write_bytes(p[5].read_bytes()[:9000]), Refusal.DAMAGED_PIXELS),
    "empty": (lambda p: p[47].write_bytes(b""), Refusal.DAMAGED_FILE),
}


def move(paths, x, y, z):
    for path in paths:
        dataset = pydicom.dcmread(path)
        dataset.ImagePositionPatient = [float(a) + b for a, b in zip(dataset.ImagePositionPatient, (x, y, z))]
        dataset.save_as(path)


@pytest.mark.parametrize("name", DEFECTS)
def test_a_thorax_with_a_defect_is_refused(thorax_folder, tmp_path, name):
    spoil, expected = DEFECTS[name]
    folder = tmp_path / "thorax"
    shutil.copytree(thorax_folder, folder)
    assert read_series(folder).array.shape == (120, 100, 48)
    spoil(sorted(folder.iterdir()))
    with pytest.raises(SeriesRefused) as caught:
        read_series(folder)
    assert caught.value.reason is expected, str(caught.value)


def test_two_patients_in_one_folder_are_told_apart(thorax, thorax_folder, tmp_path):
    folder = tmp_path / "mixed"
    shutil.copytree(thorax_folder, folder)
    volume, affine = thorax
    write_series(folder, volume[:120, :100, :40], affine, patient_id="OTHER", series_uid="1.2.3", first_instance=100)
    with pytest.raises(SeriesRefused, match="2 volumes"):
        read_series(folder)
    np.testing.assert_array_equal(read_series(folder, series_uid="1.2.3").array, volume[:120, :100, :40])
