"""Reading NIfTI: one volume on RAS axes, or one error that names the file."""

import gzip

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose, EnsureChannelFirst, LoadImage, Orientation

from medical_diffusion_components.transforms.load_volume import LoadVolume, LoadVolumed
from medical_diffusion_components.transforms.volume_error import VolumeError

SIZE = (10, 20, 30)
OBLIQUE = np.array([[0.1, 0, 2.9, 5], [0.5, 0.02, -0.1, -7], [0, -0.7, 0.1, 11], [0, 0, 0, 1.0]])


def save(path, shape=SIZE, affine=OBLIQUE, dtype=np.float32):
    volume = (np.random.default_rng(0).random(shape) * 100).astype(dtype)
    nib.save(nib.Nifti1Image(volume, affine), path)
    return path


@pytest.mark.parametrize("dtype", [np.float32, np.int16, np.uint8, ">i2", np.float64])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_it_reads_what_monai_reads(tmp_path, dtype, suffix):
    path = save(tmp_path / f"a{suffix}", dtype=dtype)
    expected = Compose([LoadImage(), EnsureChannelFirst(), Orientation("RAS", labels=None)])(path)
    volume = LoadVolume()(path)
    assert volume.shape == (1, 30, 10, 20) and volume.dtype == torch.float32
    torch.testing.assert_close(volume.as_tensor(), expected.as_tensor())
    torch.testing.assert_close(volume.affine, expected.affine)
    assert volume.meta["filename_or_obj"] == str(path)


def test_it_reads_what_nibabel_reads_on_canonical_axes(tmp_path):
    path = save(tmp_path / "a.nii.gz")
    canonical = nib.as_closest_canonical(nib.load(path))
    volume = LoadVolume()(path)
    np.testing.assert_allclose(volume[0].numpy(), canonical.get_fdata(), rtol=1e-6)
    np.testing.assert_allclose(volume.affine.numpy(), canonical.affine, rtol=1e-6)


def test_a_single_time_point_is_a_volume(tmp_path):
    flat, series = save(tmp_path / "flat.nii"), save(tmp_path / "series.nii", (*SIZE, 1))
    torch.testing.assert_close(LoadVolume()(series).as_tensor(), LoadVolume()(flat).as_tensor())


@pytest.mark.parametrize("shape", [(10, 20), (10, 20, 30, 2), (10, 20, 30, 1, 3)])
def test_what_is_no_volume_is_refused_with_its_shape(tmp_path, shape):
    path = save(tmp_path / "a.nii.gz", shape, np.eye(4))
    with pytest.raises(VolumeError, match=r"a\.nii\.gz: expected one 3D volume, got shape \(10, 20"):
        LoadVolume()(path)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-200])


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def overwrite(path):
    path.write_bytes(b"<html>404</html>")


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("damage", [truncate, overwrite, empty])
def test_a_damaged_file_is_named(tmp_path, suffix, damage):
    path = save(tmp_path / f"a{suffix}")
    damage(path)
    with pytest.raises(VolumeError, match=r"a\.nii.*: cannot be read as a NIfTI volume"):
        LoadVolume()(path)


def test_a_flipped_byte_in_a_compressed_file_is_found(tmp_path):
    path = save(tmp_path / "a.nii.gz")
    flip_a_byte(path)
    with pytest.raises(VolumeError, match="damaged"):
        LoadVolume()(path)


@pytest.mark.parametrize("name", ["colour", "complex"])
def test_voxels_that_are_no_real_numbers_are_refused(tmp_path, name):
    kinds = {"colour": np.dtype([(c, "u1") for c in "RGB"]), "complex": np.dtype("complex64")}
    nib.save(nib.Nifti1Image(np.zeros(SIZE, kinds[name]), np.eye(4)), tmp_path / "a.nii")
    with pytest.raises(VolumeError, match="expected real numbers"):
        LoadVolume()(tmp_path / "a.nii")


def test_a_singular_affine_is_refused(tmp_path):
    image = nib.Nifti1Image(np.ones(SIZE, np.float32), np.eye(4))
    image.set_sform(np.diag([1.0, 1.0, 0.0, 1.0]), code=1)
    nib.save(image, tmp_path / "a.nii")
    with pytest.raises(VolumeError, match="invertible affine"):
        LoadVolume()(tmp_path / "a.nii")


def test_a_missing_file_and_another_format_are_told_apart(tmp_path):
    (tmp_path / "a.dcm").write_bytes(b"")
    with pytest.raises(VolumeError, match=r"b\.nii: there is no such file"):
        LoadVolume()(tmp_path / "b.nii")
    with pytest.raises(VolumeError, match=r"a\.dcm: expected a NIfTI file"):
        LoadVolume()(tmp_path / "a.dcm")
    with pytest.raises(VolumeError, match="expected a NIfTI file, got a folder"):
        LoadVolume()(tmp_path)


def test_the_last_line_of_the_traceback_names_the_file_and_the_cause(tmp_path):
    path = save(tmp_path / "knee.nii.gz", (10, 20, 30, 2))
    with pytest.raises(RuntimeError) as error:
        Compose([LoadVolumed("image")])({"image": path})
    assert str(error.value).startswith(f"applying transform LoadVolumed: {path}: expected one 3D volume")


def test_only_the_keys_asked_for_are_read(tmp_path):
    path = save(tmp_path / "a.nii")
    data = {"image": path, "case_id": "a"}
    read = LoadVolumed(["image", "label"], allow_missing_keys=True)(data)
    assert read["image"].shape == (1, 30, 10, 20) and read["case_id"] == "a" and data["image"] == path


@pytest.mark.parametrize("axcodes", ["PSR", "LPS"])
def test_axes_are_turned_to_where_they_are_asked_to_point(tmp_path, axcodes):
    path = save(tmp_path / "a.nii.gz")
    volume = LoadVolumed("image", axcodes)({"image": path})["image"]
    source = nib.load(path)
    turn = nib.orientations.ornt_transform(nib.io_orientation(OBLIQUE), nib.orientations.axcodes2ornt(tuple(axcodes)))
    expected = source.as_reoriented(turn)
    np.testing.assert_allclose(volume[0].numpy(), expected.get_fdata(), rtol=1e-6)
    np.testing.assert_allclose(volume.affine.numpy(), expected.affine, rtol=1e-6, atol=1e-9)


def test_a_volume_in_memory_is_turned_as_its_file_would_be(tmp_path):
    path = save(tmp_path / "a.nii.gz")
    in_memory = LoadVolume("LPS")(path)
    turned, read = LoadVolumed("image", "SAR")({"image": in_memory})["image"], LoadVolume("SAR")(path)
    assert torch.equal(turned.as_tensor(), read.as_tensor())
    torch.testing.assert_close(turned.affine, read.affine)


def test_letters_that_are_no_axes_are_refused():
    with pytest.raises(ValueError, match="got 'sagittal'"):
        LoadVolume("sagittal")


@pytest.mark.parametrize(
    ("written", "named", "right"), [("a.nii.gz", "b.nii", ".nii.gz"), ("a.nii", "b.nii.gz", ".nii")]
)
def test_a_name_that_says_wrongly_whether_a_file_is_compressed_is_explained(tmp_path, written, named, right):
    nib.save(nib.Nifti1Image(np.zeros((3, 4, 5), np.float32), np.eye(4)), tmp_path / written)
    (tmp_path / written).rename(tmp_path / named)
    with pytest.raises(VolumeError, match=rf"compressed: rename it to {right}$"):
        LoadVolume()(tmp_path / named)


def test_a_file_that_is_compressed_twice_is_called_so(tmp_path):
    nib.save(nib.Nifti1Image(np.zeros((3, 4, 5), np.float32), np.eye(4)), tmp_path / "a.nii.gz")
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress((tmp_path / "a.nii.gz").read_bytes()))
    with pytest.raises(VolumeError, match="it is compressed twice: unpack it once$"):
        LoadVolume()(tmp_path / "a.nii.gz")


def test_an_ending_in_upper_and_lower_case_is_named(tmp_path):
    for ending in ("NII", "Nii"):
        save(tmp_path / "a.nii").rename(tmp_path / f"a.{ending}")
    assert sorted(LoadVolume()(tmp_path / "a.NII").shape[1:]) == sorted(SIZE)
    with pytest.raises(VolumeError, match="its ending is in upper and lower case: rename it to .nii$"):
        LoadVolume()(tmp_path / "a.Nii")
