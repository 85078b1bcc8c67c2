from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from dicom_writing import write_series
from monai.transforms import CenterSpatialCrop, SpatialPad
from scipy.spatial.transform import Rotation

from medical_diffusion_components.dicom.refusal import SeriesRefused
from medical_diffusion_components.preparation.steps.load_scan import PADDING_KEY, LoadScan, LoadScand, RawScan
from medical_diffusion_components.preparation.steps.load_slice_stack import LoadSliceStack
from medical_diffusion_components.transforms.volume_error import VolumeError

SHAPE = (6, 5, 4)
LPS = np.array([[-0.7, 0, 0, 30.0], [0, -0.8, 0, 20.0], [0, 0, 2.5, -10.0], [0, 0, 0, 1]])


def voxels():
    return np.random.default_rng(0).integers(-1000, 1000, SHAPE).astype(np.float32)


def world_values(volume):
    """Value at each world position, rounded to micrometres."""
    index = np.indices(volume.shape[1:]).reshape(3, -1)
    places = (np.asarray(volume.affine) @ np.vstack([index, np.ones(index.shape[1])]))[:3].T
    return {tuple(p.round(3) + 0.0): float(v) for p, v in zip(places, volume.numpy().ravel())}


@pytest.mark.parametrize("axcodes", ["RAS", "PSR", "LPI"])
def test_nifti_and_dicom_give_the_same_voxels_in_the_same_places_on_any_axes(tmp_path, axcodes):
    nib.save(nib.Nifti1Image(voxels(), LPS), tmp_path / "a.nii.gz")
    write_series(tmp_path / "dicom", voxels(), LPS, modality="CT")
    load = LoadScan(axcodes=axcodes)
    from_nifti, from_dicom = load(tmp_path / "a.nii.gz"), load(tmp_path / "dicom")
    assert nib.aff2axcodes(np.asarray(from_dicom.affine)) == tuple(axcodes)
    assert world_values(from_dicom) == world_values(from_nifti)
    place = tuple((LPS @ [2, 1, 3, 1])[:3].round(3) + 0.0)
    assert world_values(from_dicom)[place] == voxels()[2, 1, 3]


@pytest.mark.parametrize("kind", ["nifti", "dicom"])
def test_crops_and_pads_that_follow_keep_every_voxel_in_its_place(tmp_path, kind):
    if kind == "nifti":
        nib.save(nib.Nifti1Image(voxels(), LPS), tmp_path / "scan.nii.gz")
    else:
        write_series(tmp_path / "scan", voxels(), LPS, modality="CT")
    volume = LoadScan()(tmp_path / ("scan.nii.gz" if kind == "nifti" else "scan"))
    padded = world_values(SpatialPad((8, 9, 10), value=-5000)(volume))
    assert {place: value for place, value in padded.items() if value > -5000} == world_values(volume)
    assert world_values(CenterSpatialCrop((4, 3, 2))(volume)).items() <= world_values(volume).items()


def test_the_dicom_headers_padding_value_is_passed_on_in_real_units(tmp_path):
    def pad(dataset, _):
        dataset.PixelPaddingValue = -2000

    write_series(tmp_path / "ct", voxels(), LPS, modality="CT", intercept=-24.0, adjust=pad)
    assert LoadScan()(tmp_path / "ct").meta[PADDING_KEY] == -2024


def test_a_series_is_chosen_by_its_uid_and_refused_when_slices_are_missing(tmp_path):
    for number in (1, 2):
        names = [f"{number}-{k}.dcm" for k in range(SHAPE[2])]
        write_series(tmp_path, voxels() + number, LPS, series_uid=f"1.2.{number}", series_number=number, names=names)
    second = LoadScan()(RawScan(str(tmp_path), "1.2.2", SHAPE[2]))
    assert float(second.max()) == voxels().max() + 2
    with pytest.raises(SeriesRefused, match="expected 9 slices, got 4"):
        LoadScan()(RawScan(str(tmp_path), "1.2.2", 9))
    with pytest.raises(SeriesRefused, match="expected modality MR"):
        LoadScan(modality="MR")(RawScan(str(tmp_path), "1.2.1"))


def test_voxels_damaged_inside_an_intact_gzip_stream_are_noticed_by_their_checksum(tmp_path):
    path = tmp_path / "a.nii.gz"
    many = np.random.default_rng(0).normal(size=(40, 50, 60))
    nib.save(nib.Nifti1Image(many, LPS), path)
    content = bytearray(path.read_bytes())
    content[-6] ^= 1  # a bit of the checksum: all voxels can still be read
    path.write_bytes(content)
    assert np.array_equal(nib.load(path).get_fdata(), many)
    with pytest.raises(VolumeError, match="damaged or incomplete"):
        LoadScan()(path)


def test_slices_without_a_header_need_a_reader_that_places_them(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((4, 5, 6)))
    with pytest.raises(VolumeError, match="without spacing"):
        LoadScan()(tmp_path / "a.npy")
    loaded = LoadScan(axcodes="RAS", slice_stack=LoadSliceStack((1, 2, 3), "PSR"))(tmp_path / "a.npy")
    assert loaded.shape == (1, 4, 6, 5)
    np.testing.assert_allclose(np.linalg.norm(np.asarray(loaded.affine)[:3, :3], axis=0), (3, 1, 2))


@pytest.mark.parametrize("spacing", [7e3, 1e-30, np.nan])
def test_implausible_spacings_are_refused(tmp_path, spacing):
    nib.save(nib.Nifti1Image(voxels(), LPS), tmp_path / "a.nii")
    raw = bytearray((tmp_path / "a.nii").read_bytes())
    raw[280:284] = np.float32(spacing).tobytes()  # srow_x[0]
    (tmp_path / "a.nii").write_bytes(raw)
    with pytest.raises(VolumeError):
        LoadScan()(tmp_path / "a.nii")


def test_a_sheared_volume_is_refused(tmp_path):
    affine = LPS.copy()
    affine[0, 2] = 0.5
    nib.save(nib.Nifti1Image(voxels(), affine), tmp_path / "a.nii")
    with pytest.raises(VolumeError, match="sheared"):
        LoadScan()(tmp_path / "a.nii")


def test_a_header_that_claims_too_many_voxels_is_refused_unread(tmp_path):
    nib.save(nib.Nifti1Image(voxels(), LPS), tmp_path / "a.nii")
    raw = bytearray((tmp_path / "a.nii").read_bytes())
    raw[42:48] = np.array([30000, 30000, 30000], np.int16).tobytes()
    (tmp_path / "a.nii").write_bytes(raw)
    with pytest.raises(VolumeError, match="more than the"):
        LoadScan()(tmp_path / "a.nii")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9\n", r"pointer of Git LFS.*git lfs pull"),
        (b"../../.git/annex/objects/Xx/"[10:], r"pointer of git-annex.*datalad get"),
        (b"\n<!DOCTYPE html><html><title>Login</title>", "a web page, not a scan"),
        (b"<HTML>", "a web page, not a scan"),
    ],
)
@pytest.mark.parametrize("name", ["a.nii.gz", "a.nrrd", "a.mha", "a.hdr"])
def test_what_a_download_left_in_the_place_of_a_volume_is_called_what_it_is(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(VolumeError, match=rf"{name}: .*{reason}"):
        LoadScan()(tmp_path / name)


def test_a_file_that_the_system_does_not_let_be_read_is_named(tmp_path, monkeypatch):
    def denied(*_):
        raise PermissionError(13, "Permission denied")

    nib.save(nib.Nifti1Image(voxels(), LPS), tmp_path / "a.nii.gz")
    monkeypatch.setattr("pathlib.Path.open", denied)
    with pytest.raises(VolumeError, match=r"a.nii.gz: the file cannot be read: Permission denied"):
        LoadScan()(tmp_path / "a.nii.gz")


@pytest.mark.parametrize(("degrees", "noted"), [(0, False), (29, False), (31, True), (44, True)])
@pytest.mark.parametrize("thick", [True, False])
def test_slices_that_lie_between_two_planes_are_remarked_on(tmp_path, degrees, noted, thick):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("x", degrees, degrees=True).as_matrix() @ np.diag([1, 1, 4 if thick else 1])
    affine[:3, 3] = 5
    nib.save(
        nib.Nifti1Image(np.random.default_rng(0).normal(size=(7, 6, 5)).astype(np.float32), affine), tmp_path / "a.nii"
    )
    data = LoadScand("image")({"image": str(tmp_path / "a.nii")})
    assert ("oblique_slices" in data.get("notes", {})) == (noted and thick)
