from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medical_diffusion_components.preparation.steps.load_segments import LoadSegments, LoadSegmentsd, segment_paths
from medical_diffusion_components.transforms.volume_error import VolumeError

SIZE, SPACING, ORIGIN = (6, 5, 4), (2.0, 1.0, 3.0), (-7.0, 4.0, 9.0)  # of the image, RAS
BREAST = np.zeros(SIZE, np.uint8)
BREAST[1:5, 1:4, 1:3] = 1
DENSE, VESSELS = np.zeros(SIZE, np.uint8), np.zeros(SIZE, np.uint8)
DENSE[2:4, 2:4, 1:3], VESSELS[3, 2, 1:3], VESSELS[1, 1, 2] = 1, 1, 1


def image() -> MetaTensor:
    affine = np.diag([*SPACING, 1.0])
    affine[:3, 3] = ORIGIN
    return MetaTensor(torch.rand(1, *SIZE), affine=torch.from_numpy(affine), meta={"filename_or_obj": "scan"})


def write(path: Path, voxels: np.ndarray, segments: list[tuple[str, int, int]]) -> Path:
    """As 3D Slicer does, in LPS and with the slices from head to feet; ``voxels`` is (H, W, D) or (layers, H, W, D)."""
    flipped = voxels[..., ::-1]
    layers = [] if voxels.ndim == 3 else [len(voxels)]
    kinds, directions = ["list"] * len(layers), ["none"] * len(layers)
    h, w, d = SPACING
    origin = (-ORIGIN[0], -ORIGIN[1], ORIGIN[2] + d * (SIZE[2] - 1))
    lines = [
        "NRRD0004",
        "type: unsigned char",
        f"dimension: {voxels.ndim}",
        "space: left-posterior-superior",
        f"sizes: {' '.join(str(n) for n in (*layers, *SIZE))}",
        f"space directions: {' '.join([*directions, f'({-h},0,0)', f'(0,{-w},0)', f'(0,0,{-d})'])}",
        f"kinds: {' '.join([*kinds, 'domain', 'domain', 'domain'])}",
        "encoding: raw",
        f"space origin: ({origin[0]},{origin[1]},{origin[2]})",
    ]
    for number, (name, value, layer) in enumerate(segments):
        lines += [
            f"Segment{number}_Name:={name}",
            f"Segment{number}_LabelValue:={value}",
            f"Segment{number}_Layer:={layer}",
        ]
    path.write_bytes("\n".join([*lines, "", ""]).encode() + flipped.tobytes(order="F"))  # the first axis runs fastest
    return path


def files(folder: Path, swapped: bool = False, in_layers: bool = False) -> list[Path]:
    """Breast in one file; dense tissue and vessels in the other, whose values or layers change from case to case."""
    first = write(folder / "breast.seg.nrrd", BREAST, [("Breast", 1, 0)])
    if in_layers:
        both, segments = np.stack([VESSELS, DENSE]), [("Dense", 1, 1), ("Vessels", 1, 0)]
    else:
        dense, vessels = (2, 1) if swapped else (1, 2)
        both = np.where(VESSELS, vessels, DENSE * dense).astype(np.uint8)
        segments = [("Dense", dense, 0), ("Vessels", vessels, 0)]
    return [first, write(folder / "tissue.seg.nrrd", both, segments)]


EXPECTED = np.where(VESSELS, 3, np.where(DENSE, 2, BREAST))


@pytest.mark.parametrize("layout", [{}, {"swapped": True}, {"in_layers": True}], ids=["plain", "swapped", "in layers"])
def test_segments_lie_where_they_were_drawn_whatever_value_or_layer_they_have(tmp_path: Path, layout: dict) -> None:
    label = LoadSegments({"Breast": 1, "Dense": 2, "Vessels": 3})(files(tmp_path, **layout), image())
    np.testing.assert_array_equal(label[0].numpy(), EXPECTED)
    torch.testing.assert_close(label.affine, image().affine)


def test_only_the_named_segments_are_taken_and_may_share_a_value(tmp_path: Path) -> None:
    found = files(tmp_path)
    np.testing.assert_array_equal(LoadSegments({"Breast": 1})(found, image())[0].numpy(), BREAST)
    label = LoadSegments({"Dense": 1, "Vessels": 1})(found, image())
    np.testing.assert_array_equal(label[0].numpy(), (DENSE | VESSELS))


def test_the_segment_named_later_wins(tmp_path: Path) -> None:
    label = LoadSegments({"Vessels": 3, "Dense": 2, "Breast": 1})(files(tmp_path, in_layers=True), image())
    np.testing.assert_array_equal(label[0].numpy(), np.where(BREAST, 1, np.where(DENSE, 2, VESSELS * 3)))


def test_a_segment_that_no_file_or_two_files_have_is_named(tmp_path: Path) -> None:
    found = files(tmp_path)
    with pytest.raises(VolumeError, match=r"expected a segment 'Skin', .* have \['Breast', 'Dense', 'Vessels'\]"):
        LoadSegments({"Skin": 1})(found, image())
    with pytest.raises(VolumeError, match="'Breast' is in another file"):
        LoadSegments({"Breast": 1})([found[0], found[0]], image())


def test_a_segment_elsewhere_or_a_damaged_file_is_named(tmp_path: Path) -> None:
    found = files(tmp_path)
    far = image()
    far.affine[:3, 3] += 500
    with pytest.raises(VolumeError, match="'Breast' has no voxel inside the image"):
        LoadSegments({"Breast": 1})(found, far)
    found[0].write_bytes(found[0].read_bytes()[:-30])
    with pytest.raises(VolumeError, match=r"breast\.seg\.nrrd: cannot be read as a NRRD volume"):
        LoadSegments({"Breast": 1})(found, image())
    (tmp_path / "x.nrrd").write_bytes(b"none")
    with pytest.raises(VolumeError, match=r"x\.nrrd: .*not a NRRD file"):
        LoadSegments({"Breast": 1})([tmp_path / "x.nrrd"], image())


def test_a_case_without_a_file_is_named(tmp_path: Path) -> None:
    first, second = (str(path) for path in files(tmp_path))
    load = LoadSegmentsd(["breast", "tissue"], grid_key="image", label_key="label", segments={"Breast": 1})
    made = load({"image": image(), "breast": first, "tissue": second, "case_id": "7"})
    assert made.keys() == {"image", "label", "case_id"}
    with pytest.raises(VolumeError, match="7: expected a file of segments as 'tissue', found none"):
        load({"image": image(), "breast": first, "case_id": "7"})


@pytest.mark.parametrize("segments", [{}, {"Breast": 2}, {"Breast": 0, "Dense": 1}])
def test_values_with_gaps_are_refused(segments: dict) -> None:
    with pytest.raises(ValueError, match="without gaps"):
        LoadSegments(segments)


def test_the_folder_of_masks_must_be_there(tmp_path: Path) -> None:
    assert segment_paths(tmp_path, {"breast": "a/{case_id}.nrrd"}) == {"breast": f"{tmp_path}/a/{{case_id}}.nrrd"}
    with pytest.raises(ValueError, match="--masks_dir"):
        segment_paths(None, {})
    with pytest.raises(NotADirectoryError, match="none"):
        segment_paths(tmp_path / "none", {})
