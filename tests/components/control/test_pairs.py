"""Pairs from masks: whose they are decides the split, and what a run replaces or finds in the folder is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage

from medical_diffusion_components.control import PairSampling, PairWriter, pairs, training_structures
from medical_diffusion_components.data import SPLITS
from medical_diffusion_components.weights import save_weights

SIZE, SPACING = (8, 6, 4), (2.0, 2.0, 3.0)
CLASSES = {"background": 0, "organ": 1, "lesion": 2}
Draw = Callable[..., dict]


@pytest.fixture
def draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Draw:
    """Pairs of these label maps by a generator that draws noise; what ``dataset.json`` lists then."""
    weights = save_weights(torch.nn.Linear(1, 1), tmp_path / "model.pt", {"data": "embedded cohort"})
    network = SimpleNamespace(strength=1.0)
    network.eval = lambda: network
    monkeypatch.setattr(pairs, "draw_controlled", lambda *_: torch.rand(1, 1, *SIZE))

    def made(
        masks: dict[str, np.ndarray],
        volumes_per_mask: int = 1,
        folder: str = "masks",
        strength: float = 1.0,
        structures: dict | None = None,
    ) -> dict:
        network.strength = strength
        for name, labels in masks.items():
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(labels, np.diag([*SPACING, 1.0])), tmp_path / folder / f"{name}.nii.gz")
        writer = PairWriter(tmp_path / "pairs", weights, weights, {}, CLASSES)
        sampling = PairSampling(
            network, network, writer, torch.from_numpy, (1, 1, 1, 1), SIZE, SPACING, seed=10, structures=structures
        )  # fmt: skip
        return json.loads(sampling.run(sorted((tmp_path / folder).rglob("*.nii.gz")), volumes_per_mask).read_text())

    return made


def test_an_unknown_augmentation_is_refused_before_anything_is_drawn() -> None:
    nothing = SimpleNamespace()
    with pytest.raises(ValueError, match=r"expected augmentations among flip, affine, elastic, got \['warp'\]"):
        PairSampling(nothing, nothing, nothing, nothing, (1, 1, 1, 1), SIZE, SPACING, augment=["warp"])


def mask(number: int) -> np.ndarray:
    labels = np.zeros(SIZE, np.uint8)
    labels[2:6, 1:4, 1:3], labels[2 + number % 4, 1 + number // 4, 1] = 1, 2
    return labels


def test_pairs_of_one_patient_are_in_one_split_and_nobody_is_named(draw: Draw) -> None:
    names = [f"sub-0{patient}_ses-{session}" for patient in range(1, 5) for session in range(3)]
    listing = draw({name: mask(number) for number, name in enumerate(names)}, volumes_per_mask=2)
    splits = {entry["case_id"]: split for split in SPLITS for entry in listing[split]}
    assert len(splits) == 24
    for patient in range(4):
        assert len({splits[f"pair_{10 + number:06d}"] for number in range(6 * patient, 6 * patient + 6)}) == 1
    assert "sub-" not in json.dumps(listing)


def test_a_class_that_no_mask_has_is_named(draw: Draw, caplog) -> None:
    draw({"a": np.minimum(mask(1), 1)})
    assert "no voxel of lesion is in any of the 1 masks" in caplog.text


@pytest.mark.parametrize(
    ("strength", "remark"),
    [(0.0, "0: the volumes are drawn without the masks"), (1e6, "1e+06 is far from 1"), (1.0, ""), (1.5, "")],
)
def test_a_strength_unlike_the_training_is_remarked_on(draw: Draw, caplog, strength: float, remark: str) -> None:
    draw({"a": mask(1)}, strength=strength)
    assert remark in caplog.text if remark else "control_strength" not in caplog.text


def test_masks_unlike_those_of_the_training_are_remarked_on(draw: Draw, caplog, tmp_path: Path) -> None:
    masks = [{"mask": str(tmp_path / f"{number}.npy")} for number in range(12)]  # no scan is read again for this
    for number, entry in enumerate(masks):
        np.save(entry["mask"], mask(number))
    structures = training_structures(masks, CLASSES, [0])
    low, high = structures["organ"]["centre"]
    found = np.array([ndimage.center_of_mass(mask(number) == 1) for number in range(12)]) + 0.5
    found = np.concatenate([found, [SIZE[0], 0, 0] + found * [-1, 1, 1]]) / SIZE  # mirrored along H as well
    assert ((found.min(0) - low - 0.03).round(4) >= 0).all() and (found.min(0) - low < 0.041).all()
    assert ((high - found.max(0) - 0.03).round(4) >= 0).all() and (high - found.max(0) < 0.041).all()
    draw({"a": mask(3), "b": mask(3)[::-1]}, structures=structures)
    assert "unlike" not in caplog.text
    draw({"c": mask(3)[:, ::-1]}, folder="turned", structures=structures)
    assert "1 of the 1 masks are unlike those that the branch was trained with, the first is c.nii.gz" in caplog.text
    assert "organ: its centre lies elsewhere than in training (1 masks)" in caplog.text
    draw({"noise": np.random.default_rng(0).integers(0, 3, SIZE, np.uint8)}, folder="noise", structures=structures)
    assert "organ: more voxels than in training (1 masks)" in caplog.text


def test_what_a_second_run_replaces_and_what_it_finds_is_said(draw: Draw, capsys) -> None:
    draw({"a": mask(1), "b": mask(2)})
    draw({"a": mask(1), "b": mask(2)})
    assert "remark" not in capsys.readouterr().out, "the same again"
    listing = draw({"c": mask(5)}, folder="others")
    said = capsys.readouterr().out
    assert "remark: 1 pairs of other masks were replaced, and 1 that were there before are listed, too" in said
    assert len(listing["training"]) == 2


def test_pairs_fill_all_splits_where_there_are_masks_enough(draw: Draw) -> None:
    listing = draw({f"{number}": mask(number) for number in range(6)})
    patients = [{entry["patient_id"] for entry in listing[split]} for split in SPLITS]
    assert all(patients) and sum(map(len, patients)) == len(set.union(*patients)) == 6


def test_pairs_of_two_masks_are_all_for_training(draw: Draw) -> None:
    assert [len(draw({"a": mask(1), "b": mask(2)})[split]) for split in SPLITS] == [2, 0, 0]
