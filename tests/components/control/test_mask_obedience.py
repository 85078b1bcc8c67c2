"""Dice against floor and ceiling, with a segmentation whose mistakes are known."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medical_diffusion_components.control import MaskObedience, class_dice

CLASSES = {"background": 0, "organ": 1}


def case(folder: Path, name: str, start: int) -> dict:
    """A block of 4 slices from ``start`` on; the image is the label map."""
    labels = np.zeros((12, 6, 5), np.uint8)
    labels[start : start + 4] = 1
    for kind, volume in (("image", labels.astype(np.float32)), ("label", labels)):
        nib.save(nib.Nifti1Image(volume, np.eye(4)), folder / f"{name}_{kind}.nii.gz")
    return {kind: str(folder / f"{name}_{kind}.nii.gz") for kind in ("image", "label")} | {
        "case_id": name,
        "patient_id": name,
    }


def shifted(case: dict) -> np.ndarray:
    """Finds every block one slice too late: 3 of 4 slices overlap, Dice 0.75."""
    return np.roll(nib.load(case["image"]).get_fdata(), 1, 0).astype(np.uint8)


def right(case: dict) -> np.ndarray:
    return nib.load(case["image"]).get_fdata().astype(np.uint8)


def decoded(cases: list[dict]) -> list[dict]:
    """A first stage that moves every volume by one slice: 3 of 4 slices overlap."""
    made = []
    for one in cases:
        path = one["image"].replace("_image", "_decoded")
        nib.save(nib.Nifti1Image(np.roll(nib.load(one["image"]).get_fdata(), 1, 0), np.eye(4)), path)
        made.append({**one, "image": path})
    return made


def measured(folder: Path, synthetic, real) -> dict:
    pairs = [case(folder, f"pair_{start}", start) for start in (0, 4, 7)]
    held_out = [case(folder, "real_1", 2), case(folder, "real_2", 3)]

    def segment(one: dict) -> np.ndarray:
        return (real if one["case_id"].startswith("real") else synthetic)(one)

    facts = {"control": "0" * 64}
    MaskObedience(segment, CLASSES, pairs, held_out, decoded, folder / "report", facts, num_shown=1).run()
    page = (folder / "report" / "mask_obedience.html").read_text()
    assert "Held-out volumes" in page and "Through the first stage" in page
    assert "<th>class</th><th>synthetic</th><th>floor</th><th>first stage</th><th>ceiling</th>" in page
    assert "dice: " not in page, "the table alone has the numbers"
    return json.loads((folder / "report" / "mask_obedience.json").read_text())


def test_dice_lies_between_floor_and_ceiling(tmp_path: Path) -> None:
    report = measured(tmp_path, shifted, right)
    assert report["dice"]["synthetic"]["organ"]["mean"] == pytest.approx(0.75)
    assert report["dice"]["ceiling"]["organ"]["mean"] == 1.0
    found = [set(range(s + 1, s + 5)) for s in (0, 4, 7)]
    asked = [set(range(s, s + 4)) for s in (4, 7, 0)]
    floor = np.mean([2 * len(f & a) / 8 for f, a in zip(found, asked)])
    assert report["dice"]["floor"]["organ"]["mean"] == pytest.approx(floor)
    text = (tmp_path / "report" / "mask_obedience.md").read_text()
    assert "| class | synthetic | floor | first stage | ceiling |" in text
    assert "| organ | 0.750 (0.750 to 0.750) |" in text


def twice_shifted(case: dict) -> np.ndarray:
    return np.roll(right(case), 2, 0)


def test_the_first_stages_part_of_the_distance_is_said(tmp_path: Path) -> None:
    """Synthetic volumes are two slices off, decoded ones one: Dice 0.5, 0.75 and 1."""
    report = measured(tmp_path, twice_shifted, right)
    assert report["dice"]["first_stage"]["organ"]["mean"] == pytest.approx(0.75)
    [said] = report["sentences"]
    assert said.startswith("organ: Dice 0.500, floor ")
    assert said.endswith(
        "first stage 0.750, ceiling 1.000: below the ceiling by 0.500, of which 0.250 by the first stage."
    )


def test_no_more_than_the_whole_distance_is_the_first_stages(tmp_path: Path) -> None:
    """Decoded volumes read worse than synthetic ones (0.5 and 0.75), as few cases may have it."""

    def real(case: dict) -> np.ndarray:
        return np.roll(right(case), 1 if "decoded" in case["image"] else 0, 0)

    [said] = measured(tmp_path, shifted, real)["sentences"]
    assert said.endswith(
        "first stage 0.500, ceiling 1.000: below the ceiling by 0.250, of which 0.250 by the first stage."
    )


def test_what_is_as_good_as_real_volumes_is_obeyed(tmp_path: Path) -> None:
    report = measured(tmp_path, shifted, shifted)
    assert report["sentences"][0].endswith("first stage 0.500, ceiling 0.750: obeyed.")


def test_pairs_of_one_mask_give_no_floor(tmp_path: Path) -> None:
    one = case(tmp_path, "pair_0", 0)
    with pytest.raises(ValueError, match="expected pairs of at least two masks and a held-out case, got 2 pairs"):
        MaskObedience(right, CLASSES, [one, one], [one], decoded, tmp_path, {})


def test_a_class_that_neither_has_is_not_measured() -> None:
    assert np.isnan(class_dice(np.zeros(3), np.zeros(3), 1))
    assert class_dice(np.array([1, 1, 0]), np.array([1, 0, 0]), 1) == pytest.approx(2 / 3)
