"""A copied mask is found, mirrored as well; Dice and volumes are those that are counted by hand."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medical_diffusion_components.control import MaskEvaluation, class_dice, mean_dice, nearest_masks

CLASSES = {"background": 0, "organ": 1, "lesion": 2}
SIZE, SPACING = (10, 8, 6), (2.0, 2.0, 5.0)


def labels(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    volume = np.zeros(SIZE, np.uint8)
    h, w = rng.integers(0, 4, 2)
    volume[h : h + 5 + rng.integers(2), w : w + 4, 1:5] = 1
    volume[h + 1 : h + 3, w + 1 : w + 2 + rng.integers(2), 2:4] = 2
    return volume


def case(folder: Path, name: str, volume: np.ndarray) -> dict:
    for kind in ("image", "label"):
        nib.save(nib.Nifti1Image(volume, np.diag([*SPACING, 1.0])), folder / f"{name}_{kind}.nii")
    return {kind: str(folder / f"{name}_{kind}.nii") for kind in ("image", "label")} | {"case_id": name}


def test_the_mean_dice_is_that_of_the_classes_one_by_one() -> None:
    one, others = labels(0), np.stack([labels(1), labels(2)])
    expected = [np.mean([class_dice(one, other, value) for value in (1, 2)]) for other in others]
    np.testing.assert_allclose(mean_dice(one, others, 3), expected)


def test_a_class_that_neither_has_counts_in_no_mean() -> None:
    without = [np.where(labels(seed) == 2, 1, labels(seed)) for seed in (0, 1)]
    assert mean_dice(without[0], without[1][None], 3)[0] == pytest.approx(class_dice(*without, 1))
    assert mean_dice(np.zeros(SIZE, np.uint8), np.zeros((1, *SIZE), np.uint8), 3)[0] == 0


def test_a_copy_is_found_plain_and_mirrored() -> None:
    training = [labels(seed) for seed in range(4)]
    mirrored = np.flip(training[2], 1)
    found = nearest_masks([training[3], mirrored], training, 3, [1])
    np.testing.assert_allclose(found, 1.0)
    assert nearest_masks([mirrored], training, 3)[0] < 0.99


def test_the_report_names_copies_and_compares_volumes(tmp_path: Path) -> None:
    training = [case(tmp_path, f"t{seed}", labels(seed)) for seed in range(6)]
    held_out = [case(tmp_path, f"h{seed}", labels(seed)) for seed in (25, 31, 33)]
    drawn = []
    for number, volume in enumerate([labels(1), labels(40)]):
        drawn.append(tmp_path / f"mask_{number:06d}.nii.gz")
        nib.save(nib.Nifti1Image(volume, np.diag([*SPACING, 1.0])), drawn[-1])
    evaluation = MaskEvaluation(
        drawn, training, held_out, CLASSES, tmp_path / "report", {}, SIZE, SPACING, num_shown=1, notice="invented"
    )
    report = evaluation.run()
    near = report["nearest_training"]
    highest = [max(mean_dice(labels(h), np.stack([labels(t) for t in range(6)]), 3)) for h in (25, 31, 33)]
    assert near["held_out"]["most"] == pytest.approx(max(highest)) and max(highest) < 1
    assert near["drawn"]["most"] == 1 and near["nearer_than_any_held_out"] == ["mask_000000.nii.gz"]
    assert near["expected_by_chance"] == pytest.approx(2 / 4)
    organ = report["volumes_ml"]["organ"]
    counted = [(labels(seed) == 1).sum() * 20 / 1000 for seed in range(6)]
    assert organ["training"]["mean"] == pytest.approx(np.mean(counted))
    assert organ["training"]["sd"] == pytest.approx(np.std(counted, ddof=1))
    assert report["dice_of_two"]["drawn"] == pytest.approx(float(mean_dice(labels(1), labels(40)[None], 3)[0]))
    written = json.loads((tmp_path / "report" / "mask_evaluation.json").read_text())
    assert written["sentences"] == report["sentences"]
    assert "1 of 2 drawn masks are nearer" in (tmp_path / "report" / "mask_evaluation.md").read_text()
    page = (tmp_path / "report" / "mask_evaluation.html").read_text()
    assert "invented" in page and "volumes ml: " not in page, "the table alone has the volumes"
    lines = (tmp_path / "report" / "mask_evaluation.md").read_text().splitlines()
    [row] = [line.strip("| ").split(" | ") for line in lines if line.startswith("| organ |")]
    assert f"<tr><th>organ</th>{''.join(f'<td>{cell}</td>' for cell in row[1:])}</tr>" in page


def test_one_mask_is_not_enough(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least two drawn and two held-out masks, got 1 and 0"):
        MaskEvaluation([tmp_path], [], [], CLASSES, tmp_path, {}, SIZE)
