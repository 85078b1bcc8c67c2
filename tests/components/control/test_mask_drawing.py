"""Masks are drawn until enough are plausible; each has a note, and only what has one counts as synthesised."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from warm_processes import processes

from medical_diffusion_components.control import (
    MaskSampling,
    chosen_masks,
    drawn_masks,
    read_asked_mask,
    structure_limits,
)
from medical_diffusion_components.files import file_hash
from medical_diffusion_components.weights import save_weights

CLASSES = {"background": 0, "organ": 1}
SIZE = (8, 6, 5)


def labels(side: int) -> np.ndarray:
    volume = np.zeros(SIZE, np.uint8)
    volume[1 : 1 + side, 1:5, 1:4] = 1
    return volume


class InTurn(nn.Module):
    """Draws an organ of the next side each time, with a speck."""

    def __init__(self, sides: list[int]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.sides = iter(sides)

    def forward(self, noise: torch.Tensor) -> torch.Tensor:
        drawn = labels(next(self.sides))
        drawn[7, 5, 4] = 1
        return torch.nn.functional.one_hot(torch.from_numpy(drawn).long(), 2).movedim(-1, 0)[None].float()


def sampling(folder: Path, sides: list[int], masks: Path | None = None) -> MaskSampling:
    generator = InTurn(sides)
    save_weights(generator, folder / "masks.pt", {"data": "embedded cohort", "notice": "invented"})
    limits = structure_limits([labels(4), labels(5)], CLASSES)
    facts = {"steps": 2}
    return MaskSampling(
        *(generator, masks or folder / "masks", folder / "masks.pt", facts, CLASSES, limits),
        latent_shape=(2, 4, 3, 5),
        spacing=(2, 2, 3),
        seed=7,
    )


def test_implausible_masks_are_left_out_and_the_seeds_go_on(tmp_path: Path) -> None:
    written = sampling(tmp_path, [4, 1, 5]).run(2)
    assert [path.name for path in written] == ["mask_000007.nii.gz", "mask_000009.nii.gz"]
    image = nib.load(written[1])
    np.testing.assert_array_equal(np.asarray(image.dataobj), labels(5))  # the speck is gone
    assert image.get_data_dtype() == np.uint8
    np.testing.assert_allclose(nib.affines.voxel_sizes(image.affine), (2, 2, 3))
    note = json.loads((tmp_path / "masks" / "mask_000009.json").read_text())
    assert note["seed"] == 9 and note["synthetic"] is True and note["steps"] == 2 and note["notice"] == "invented"
    assert note["weights_sha256"] == file_hash(tmp_path / "masks.pt")
    assert note["cleaned"] == pytest.approx(1 / np.prod(SIZE), abs=1e-6)
    assert (tmp_path / "masks" / "montage.png").is_file()


class BySeed(nn.Module):
    """Draws an organ that is plausible for about half of the seeds."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.draws = 0

    def forward(self, noise: torch.Tensor) -> torch.Tensor:
        self.draws += 1
        drawn = labels(4 if noise[0, 0, 0, 0, 0] > 0 else 1)
        return torch.nn.functional.one_hot(torch.from_numpy(drawn).long(), 2).movedim(-1, 0)[None].float()


def draw_share(rank: int, ranks: int, folder: str) -> None:
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=ranks)
    drawing = sampling(Path(folder) / str(rank), [], masks=Path(folder) / "masks")
    drawing.generator = BySeed()
    files = drawing.run(5)
    (Path(folder) / f"{rank}.json").write_text(json.dumps([[file.name for file in files], drawing.generator.draws]))
    with pytest.raises(ValueError, match="only 0 of 20 drawn masks are plausible"):
        drawing.generator = InTurn([1] * 20)
        drawing.run(2)
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="gloo over a file is not to be had on Windows")
def test_several_processes_write_the_files_of_one_and_each_draws_its_own(tmp_path: Path) -> None:
    alone = sampling(tmp_path / "alone", [])
    alone.generator = BySeed()
    expected = {file.name: np.asarray(nib.load(file).dataobj) for file in alone.run(5)}
    (tmp_path / "shared").mkdir()
    processes(3, draw_share, 3, str(tmp_path / "shared"))
    found = sorted((tmp_path / "shared" / "masks").glob("*.nii.gz"))
    assert [file.name for file in found] == list(expected)
    for file in found:
        np.testing.assert_array_equal(np.asarray(nib.load(file).dataobj), expected[file.name])
    said = [json.loads((tmp_path / "shared" / f"{rank}.json").read_text()) for rank in range(3)]
    assert [files for files, _ in said] == [list(expected)] * 3
    assert {draws for _, draws in said} == {-(-alone.generator.draws // 3)}


def test_a_generator_of_implausible_masks_is_given_up(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"only 0 of 10 drawn masks .* organ: fewer voxels than in training \(10 times\)"
    ):
        sampling(tmp_path, [1] * 10).run(1)
    with pytest.raises(ValueError, match="expected at least one mask to draw, got 0"):
        sampling(tmp_path, []).run(0)


def test_the_log_says_why_masks_are_left_out_while_they_are_drawn(tmp_path: Path, caplog) -> None:
    caplog.set_level("INFO", "medical_diffusion_components")
    with pytest.raises(RuntimeError, match="StopIteration"):  # the third mask is never drawn
        sampling(tmp_path, [4, *[1] * 4, 5, *[1] * 8]).run(3)
    few, reason = "drawn masks left out: organ: fewer voxels than in training", [r.getMessage() for r in caplog.records]
    assert reason == [f"5 of 7 {few} (5 times)", f"10 of 12 {few} (10 times)"]


def test_the_last_few_are_told_at_the_end(tmp_path: Path, caplog) -> None:
    caplog.set_level("INFO", "medical_diffusion_components")
    sampling(tmp_path, [1, 4, 1, 5]).run(2)
    assert [r.getMessage() for r in caplog.records if "left out" in r.getMessage()] == [
        "2 of 4 drawn masks left out: organ: fewer voxels than in training (2 times)"
    ]
    caplog.clear()
    sampling(tmp_path / "again", [*[1] * 5, 4]).run(1)
    assert [r.getMessage()[:6] for r in caplog.records if "left out" in r.getMessage()] == ["5 of 5"]


def test_pairs_know_a_synthesised_mask_by_its_note(tmp_path: Path) -> None:
    (drawn,) = sampling(tmp_path, [4]).run(1)
    assert drawn_masks(tmp_path / "masks") == [drawn] == chosen_masks("synthesised", None, tmp_path / "masks")
    origin = read_asked_mask(drawn, CLASSES, SIZE, (2, 2, 3)).origin
    assert origin == {"source": "synthesised", "mask_seed": 7, "mask_weights_sha256": file_hash(tmp_path / "masks.pt")}
    own = tmp_path / "own" / "mask.nii"
    own.parent.mkdir()
    nib.save(nib.Nifti1Image(labels(4), np.diag([2.0, 2, 3, 1])), own)
    (own.parent / "mask.json").write_text(json.dumps({"weights_sha256": "of a segmentation"}))
    assert read_asked_mask(own, CLASSES, SIZE, (2, 2, 3)).origin == {"source": "given by user"}
    with pytest.raises(ValueError, match="1 of the 1 label maps in .* have no note that they were synthesised"):
        chosen_masks("synthesised", own.parent, tmp_path / "masks")


def test_what_masks_there_are_not_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"but there are none: masks.yaml draws them"):
        chosen_masks("synthesised", None, tmp_path / "masks")
    with pytest.raises(ValueError, match="expected label maps: give --masks_dir"):
        chosen_masks("given", None, tmp_path / "masks")
    with pytest.raises(ValueError, match="expected masks to be given or synthesised, got 'drawn'"):
        chosen_masks("drawn", None, tmp_path / "masks")
