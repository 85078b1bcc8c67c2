"""Label maps of any size come to the model's grid; what is no label map of the trained classes is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medical_diffusion_components.control import (
    MaskChannels,
    chosen_masks,
    num_mask_channels,
    read_asked_mask,
    signed_distance,
    varied,
)
from medical_diffusion_components.control.masks import first_of_patient
from medical_diffusion_components.transforms.volume_error import VolumeError

CLASSES = {"background": 0, "organ": 1, "lesion": 2}
SIZE, SPACING = (12, 10, 8), (2.0, 2.0, 3.0)


def labels(shape: tuple[int, ...] = SIZE) -> np.ndarray:
    volume = np.zeros(shape, np.uint8)
    volume[3:9, 2:7, 2:6] = 1
    volume[4:6, 3:5, 3:5] = 2
    return volume


def saved(path: Path, volume: np.ndarray, spacing: tuple = SPACING) -> Path:
    nib.save(nib.Nifti1Image(volume, np.diag([*spacing, 1.0])), path)
    return path


def read(path: Path, axcodes: str = "RAS"):
    return read_asked_mask(path, CLASSES, SIZE, SPACING, axcodes)


def test_a_mask_of_the_models_size_is_taken_voxel_by_voxel(tmp_path: Path) -> None:
    asked = read(saved(tmp_path / "m.nii.gz", labels()))
    np.testing.assert_array_equal(asked.labels, labels())
    np.testing.assert_array_equal(asked.affine, np.diag([*SPACING, 1.0]))
    assert asked.cut_off == 0


def test_a_mask_of_other_axes_lies_where_it_lay(tmp_path: Path) -> None:
    image = nib.Nifti1Image(labels(), np.diag([*SPACING, 1.0]))
    turned = image.as_reoriented(nib.orientations.axcodes2ornt("SLP"))
    nib.save(turned, tmp_path / "m.nii.gz")
    asked = read(tmp_path / "m.nii.gz")
    np.testing.assert_array_equal(asked.labels, labels())
    np.testing.assert_allclose(asked.affine, image.affine, atol=1e-6)


def test_a_finer_mask_keeps_place_and_volume(tmp_path: Path) -> None:
    fine = labels().repeat(2, 0).repeat(2, 1).repeat(3, 2)  # voxels of 1 mm
    asked = read(saved(tmp_path / "m.nii.gz", fine, (1.0, 1.0, 1.0)))
    for value in (1, 2):
        assert (asked.labels == value).sum() * 12 == pytest.approx((fine == value).sum(), rel=0.25)
        middle = nib.affines.apply_affine(asked.affine, np.argwhere(asked.labels == value).mean(0))
        np.testing.assert_allclose(middle, np.argwhere(fine == value).mean(0), atol=1.6)


def test_what_does_not_fit_is_counted_as_cut_off(tmp_path: Path) -> None:
    large = np.zeros((30, 10, 8), np.uint8)
    large[2:28, 2:8, 2:6] = 1
    asked = read(saved(tmp_path / "m.nii.gz", large))
    assert asked.labels.shape == SIZE and asked.cut_off == pytest.approx(1 - 12 / 26, abs=0.05)


@pytest.mark.parametrize(("volume", "message"), [
    (np.zeros(SIZE, np.uint8), "m.nii.gz: expected voxels other than background; the mask is empty"),
    (labels() * 3, r"m.nii.gz: expected the labels that were trained \(0 background, 1 organ, 2 lesion\), got \[3, 6\]"),
    (labels() * np.float32(0.5), "m.nii.gz: expected whole numbers, labels, got values such as 0.5"),
    (np.stack([labels(), labels()], -1), r"m.nii.gz: expected one 3D volume, got shape \(12, 10, 8, 2\)"),
])  # fmt: skip
def test_what_is_no_mask_of_these_classes_is_refused(tmp_path: Path, volume: np.ndarray, message: str) -> None:
    with pytest.raises(VolumeError, match=message):
        read(saved(tmp_path / "m.nii.gz", volume))


def test_variations_follow_from_the_seed_and_invent_no_label() -> None:
    kinds = ("flip", "affine", "elastic")
    one, again, other = (varied(labels(), kinds, SPACING, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any() and (one != labels()).any() and set(np.unique(one)) <= {0, 1, 2}
    np.testing.assert_array_equal(varied(labels(), (), SPACING, 1), labels())
    flipped = {varied(labels(), ["flip"], SPACING, seed, [0]).tobytes() for seed in range(8)}
    assert flipped == {labels().tobytes(), labels()[::-1].tobytes()}
    with pytest.raises(ValueError, match=r"expected augmentations among flip, affine, elastic, got \['warp'\]"):
        varied(labels(), ["warp"], SPACING, 0)


def test_channels_are_one_hot_with_distances_in_mm() -> None:
    channels = MaskChannels(3, 6.0, SPACING)(labels()).numpy()
    assert channels.shape == (num_mask_channels(3, 6.0), *SIZE)
    np.testing.assert_array_equal(channels[:3].argmax(0), labels())
    np.testing.assert_array_equal(channels[:3].sum(0), 1)
    far = signed_distance(labels() == 2, SPACING)
    places = np.argwhere(labels() == 2)
    x, y, z = 9, 8, 6
    assert far[x, y, z] == pytest.approx(np.linalg.norm(([x, y, z] - places) * SPACING, axis=1).min() - 1.0)
    assert (far[labels() == 2] < 0).all() and (far[labels() != 2] > 0).all()
    np.testing.assert_allclose(channels[4], (far / 6).clip(-1, 1), rtol=1e-6)


def test_labels_outside_the_classes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected labels from 0 to 1, got \[0, 1, 2\]"):
        MaskChannels(2)(labels())


def listed(folder: Path, **patients: str) -> None:
    entries = [
        {"image": f"{n}.nii", "label": f"labels/{n}.nii.gz", "case_id": n, "patient_id": p} for n, p in patients.items()
    ]
    (folder / "dataset.json").write_text(json.dumps({"training": entries[:1], "test": entries[1:]}))


WHOSE = {  # files, which of them are voxel for voxel the first, patients of a dataset.json -> first mask of the patient
    "each of its own": (["a", "b", "c"], [], {}, [0, 1, 2]),
    "one label map under three names": (["a", "b", "c"], [1, 2], {}, [0, 0, 0]),
    "sessions of one subject": (["sub-01_ses-1", "sub-01_ses-2", "sub-2_ses-1"], [], {}, [0, 0, 2]),
    "folders of one subject": (["sub-1/a", "sub-1/b", "sub-3/a"], [], {}, [0, 0, 2]),
    "a table of patients": (["a", "b", "c"], [], {"a": "P", "b": "Q", "c": "P"}, [0, 1, 0]),
    "the table counts before names": (["sub-1_a", "sub-1_b"], [], {"sub-1_a": "P", "sub-1_b": "Q"}, [0, 1]),
    "subject, and a copy of another": (["sub-1_a", "sub-2_a", "sub-2_b"], [1], {}, [0, 0, 0]),
    "a copy joins two patients": (["a", "b", "c"], [2], {"a": "P", "b": "Q", "c": "Q"}, [0, 0, 0]),
}


@pytest.mark.parametrize(("names", "copies", "table", "expected"), WHOSE.values(), ids=WHOSE)
def test_masks_of_one_patient_are_known_as_such(
    names: list[str], copies: list[int], table: dict, expected: list[int], tmp_path: Path, caplog
) -> None:
    folder = tmp_path / "sub-of-the-study" / "labels"
    for number, name in enumerate(names):
        volume = labels()
        volume[5, 5, 5] = 0 if number in (0, *copies) else number
        volume[1, 1, 1] = 0 if number in (0, *copies) else 2
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        saved(folder / f"{name}.nii.gz", volume)
    if table:
        listed(folder.parent, **table)
        (folder.parent / "scan.nii").write_bytes(b"no label map, and not asked for")
    paths = chosen_masks("given", folder.parent if table else folder, tmp_path)
    assert first_of_patient(paths, [read(path) for path in paths]) == expected
    assert ("is the same label map as" in caplog.text) == bool(copies)
    assert ("all pairs of a patient are in one split" in caplog.text) == (len(set(expected)) < len(expected))
