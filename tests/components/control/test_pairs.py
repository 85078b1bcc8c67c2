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

from medical_diffusion_components.control import PairSampling, PairWriter, pairs, training_structures, varied
from medical_diffusion_components.data import SPLITS
from medical_diffusion_components.diffusion import NoiseLatent
from medical_diffusion_components.files import file_hash
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


def test_a_pair_is_what_was_drawn_and_the_mask_as_it_was_varied_and_its_note_says_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = save_weights(torch.nn.Linear(1, 1), tmp_path / "model.pt", {"window": [-9.0, 9.0], "notice": "Invented."})
    control = save_weights(torch.nn.Linear(2, 1), tmp_path / "control.pt", {})
    network, asked = torch.nn.Identity(), []
    network.strength = 1.5
    drawn = np.linspace(-1.5, 1.5, 192, dtype=np.float32).reshape(SIZE)

    def draw(generator: torch.nn.Module, controlled: torch.nn.Module, noise: torch.Tensor, channels: torch.Tensor):
        assert not controlled.training
        asked.append((noise, channels))
        return torch.from_numpy(drawn)[None, None]

    monkeypatch.setattr(pairs, "draw_controlled", draw)
    paths = [tmp_path / f"sub-1_{name}.nii.gz" for name in "ab"]
    for number, path in enumerate(paths):
        nib.save(nib.Nifti1Image(mask(number), np.diag([*SPACING, 1.0])), path)

    def sampling() -> PairSampling:
        writer = PairWriter(tmp_path / "pairs", weights, control, {"sampler": "ddim"}, CLASSES, window=(100.0, 300.0))
        grid = ((1, 2, 2, 1), SIZE, SPACING, "RAS")
        return PairSampling(
            network, network, writer, torch.from_numpy, *grid, (100.0, 300.0), ["flip"], flip_axes=[1], seed=10
        )

    listing = json.loads(sampling().run(paths, 3).read_text())
    flipped = set()
    for number, (noise, channels) in enumerate(asked):
        name, first = f"pair_{10 + number:06d}", number // 3
        volume, labels = (nib.load(tmp_path / "pairs" / kind / f"{name}.nii.gz") for kind in ("images", "labels"))
        expected = varied(mask(first), ["flip"], SPACING, 10 + number, [1])
        flipped.add(not np.array_equal(expected, mask(first)))
        for found in (labels.get_fdata(), channels[0].numpy()):
            np.testing.assert_array_equal(found, expected)
        assert torch.equal(noise[0], NoiseLatent((1, 2, 2, 1))(10 + number))
        np.testing.assert_allclose(volume.get_fdata(), 200 + 100 * drawn.clip(-1, 1), rtol=1e-5)
        np.testing.assert_array_equal(volume.affine, labels.affine)
        assert volume.header.get_zooms() == SPACING
        note = json.loads((tmp_path / "pairs" / "images" / f"{name}.json").read_text())
        said = {"id": f"mask_{10 + 3 * first:06d}", "patient": "mask_000010", "augmentation": ["flip"], "cut_off": 0}
        assert said.items() <= note["mask"].items() and note["mask"]["sha256"] == file_hash(labels.get_filename())
        assert (note["control_strength"], note["sampler"], note["synthetic"]) == (1.5, "ddim", True)
        assert [note["weights_sha256"], note["control_sha256"]] == [file_hash(weights), file_hash(control)]
    assert len(asked) == len(listing["training"]) == 6 and flipped == {True, False}
    assert {entry["patient_id"] for entry in listing["training"]} == {"mask_000010"}
    assert listing["labels"] == {"0": "background", "1": "organ", "2": "lesion"}
    assert listing["description"].endswith("label maps. Invented.")
    assert listing["decided"]["scale"] == {"limits_from": "window", "limits": [-9.0, 9.0], "range": [100.0, 300.0]}
    with pytest.raises(ValueError, match="at least one volume per mask, got 0"):
        sampling().run(paths, 0)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(PairWriter, "write", killed)
    again = sampling()
    with pytest.raises(KeyboardInterrupt):
        again.run(paths[1:])
    assert not (tmp_path / "pairs" / "images" / "pair_000010.nii.gz").exists(), "its label map is another by now"
    assert "mask" not in again.writer.facts


def test_a_class_that_no_mask_has_is_named(draw: Draw, caplog) -> None:
    draw({"a": np.minimum(mask(1), 1)})
    assert "no voxel of lesion is in any of the 1 masks" in caplog.text
    caplog.clear()
    draw({"b": mask(2)})  # beside the one without
    assert "no voxel" not in caplog.text


@pytest.mark.parametrize(
    ("strength", "remark"),
    [(0.0, "0: the volumes are drawn without the masks"), (2.1, "2.1 is far from 1"), (1.0, ""), (2.0, "")],
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
