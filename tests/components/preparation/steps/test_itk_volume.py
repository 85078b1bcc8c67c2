"""What NRRD and MetaImage headers say of places and sizes, and what they leave out."""

from __future__ import annotations

import numpy as np
import pytest

from medical_diffusion_components.preparation.steps.itk_volume import check_itk_header, read_with_itk
from medical_diffusion_components.transforms.volume_error import VolumeError

VOXELS = np.random.default_rng(0).integers(0, 999, (4, 5, 6)).astype("<i2")
DIRECTIONS = "space directions: (2,0,0) (0,3,0) (0,0,4)"


def nrrd(path, *fields, detached=False):
    lines = ["NRRD0004", "type: short", "dimension: 3", "sizes: 4 5 6", "endian: little", "encoding: raw", *fields]
    content = VOXELS.tobytes(order="F")
    if detached:
        path.with_suffix(".raw").write_bytes(content)
        path.write_text("\n".join([*lines, f"data file: {path.with_suffix('.raw').name}"]) + "\n")
    else:
        path.write_bytes("\n".join([*lines, "", ""]).encode() + content)
    return path


def mha(path, *fields):
    lines = ["ObjectType = Image", "NDims = 3", "DimSize = 4 5 6", "ElementType = MET_SHORT"]
    lines += ["BinaryDataByteOrderMSB = False", *fields, "ElementDataFile = LOCAL", ""]
    path.write_bytes("\n".join(lines).encode() + VOXELS.tobytes(order="F"))
    return path


@pytest.mark.parametrize(
    ("space", "signs"),
    [("left-posterior-superior", (-1, -1, 1)), ("right-anterior-superior", (1, 1, 1)), ("LAS", (-1, 1, 1))],
)
def test_every_space_of_the_patient_becomes_ras(tmp_path, space, signs):
    path = nrrd(tmp_path / "a.nrrd", f"space: {space}", DIRECTIONS, "space origin: (7,8,9)")
    volume = read_with_itk(path)
    np.testing.assert_array_equal(np.diag(volume.affine)[:3], np.multiply(signs, (2, 3, 4)))
    np.testing.assert_array_equal(np.asarray(volume.affine)[:3, 3], np.multiply(signs, (7, 8, 9)))
    np.testing.assert_array_equal(volume.numpy()[0], VOXELS)
    assert check_itk_header(path) == ()


def test_a_detached_header_may_end_without_a_blank_line(tmp_path):
    path = nrrd(tmp_path / "a.nhdr", "space: LPS", DIRECTIONS, detached=True)
    np.testing.assert_array_equal(read_with_itk(path).numpy()[0], VOXELS)


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: nrrd(folder / "a.nrrd", "spacings: 2 3 4"),
        lambda folder: nrrd(folder / "a.nrrd", "space dimension: 3", DIRECTIONS),
        lambda folder: nrrd(folder / "a.nrrd", "space: scanner-xyz", DIRECTIONS),
        lambda folder: mha(folder / "a.mha", "ElementSpacing = 2 3 4"),
    ],
)
def test_axes_that_no_header_places_in_the_patient_are_remarked_on(tmp_path, write):
    volume = read_with_itk(write(tmp_path))
    assert volume.meta["remarks"] == ("orientation_unknown",)
    np.testing.assert_array_equal(np.abs(np.diag(volume.affine))[:3], (2, 3, 4))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda folder: nrrd(folder / "a.nrrd"), "does not say how large a voxel is"),
        (lambda folder: mha(folder / "a.mha"), "does not say how large a voxel is"),
        (
            lambda folder: nrrd(folder / "a.nrrd", "space: LPS", "space directions: none (0,3,0) (0,0,4)"),
            "does not say how large a voxel is",
        ),
        (
            lambda folder: nrrd(folder / "a.nrrd", "space: LPS", "space directions: (2,0,0) (0,3,0) (nan,nan,nan)"),
            "does not say how large a voxel is",
        ),
        (
            lambda folder: nrrd(folder / "a.nrrd", "space: LPS", DIRECTIONS, 'space units: "cm" "cm" "cm"'),
            "expected mm, the header says cm",
        ),
    ],
)
def test_sizes_that_are_missing_or_in_another_unit_are_refused(tmp_path, write, message):
    with pytest.raises(VolumeError, match=message):
        read_with_itk(write(tmp_path))


def test_a_header_that_places_the_axes_is_believed(tmp_path):
    rows = "TransformMatrix = -1 0 0 0 -1 0 0 0 1"
    path = mha(tmp_path / "a.mha", "ElementSpacing = 2 3 4", rows, "Offset = 7 8 9")
    np.testing.assert_array_equal(np.diag(read_with_itk(path).affine)[:3], (2, 3, 4))
    assert check_itk_header(path) == ()


def test_voxels_that_are_lacking_are_called_so(tmp_path):
    path = mha(tmp_path / "a.mha", "ElementSpacing = 2 3 4")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(VolumeError, match="of one layer: its voxels are not there, or not all of them"):
        read_with_itk(path)
