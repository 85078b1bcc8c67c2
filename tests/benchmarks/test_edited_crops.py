"""How the crops of redrawn regions are taken and compared, and the command at the smallest size."""

from __future__ import annotations

import re
from pathlib import Path

import editing
import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from test_benchmark_commands import ADNI, REPOSITORY, bundle_folders, run
from warm_processes import python

from medical_diffusion_components.weights import save_weights


@pytest.mark.parametrize("crop", [1, 2, 5, 16])
def test_the_cube_lies_in_the_least_ball_that_holds_it(crop: int) -> None:
    radius = editing.radius_around(crop)
    middle = np.array([20, 25, 22])
    volume = np.indices((40, 44, 42)).sum(0).astype(float)
    mask = editing.ball(volume.shape, middle, radius)
    cut = editing.cube(mask, middle, crop)
    assert cut.shape == (crop,) * 3 and cut.all()
    assert editing.cube(volume, middle, crop)[0, 0, 0] == 67 - 3 * (crop // 2)
    assert mask.sum() == (np.linalg.norm(np.indices(mask.shape) - middle[:, None, None, None], axis=0) <= radius).sum()


def test_balls_lie_in_bright_places_and_touch_no_face() -> None:
    values = np.zeros((32, 40, 36))
    values[2:30, 3:9, 10:20] = 5.0
    places = np.array([editing.middle_of_ball(values, number, 0, 6) for number in range(20)])
    assert (places >= 7).all() and (places <= np.array(values.shape) - 8).all()
    assert set(places[:, 1]) <= {7, 8} and len(set(places[:, 0])) > 5, "the bright box, as far as the faces allow"
    assert np.array_equal(places[3], editing.middle_of_ball(values, 3, 0, 6)), "from seed and number"


def textures(seed: int, blur: float, count: int = 8) -> list[np.ndarray]:
    """Cubes of noise in [-1, 1], blurred."""
    rng = np.random.default_rng(seed)
    made = [gaussian_filter(rng.normal(size=(16, 16, 16)), blur) for _ in range(count)]
    return [np.clip(one / one.std() / 3, -1, 1) for one in made]


@pytest.mark.slow
def test_what_is_like_the_reference_is_near_and_what_is_smoother_is_not() -> None:
    crops = {"edited": textures(1, 1.0), "unconditional": textures(2, 3.0)}
    found = editing.kid_of_crops(crops, textures(3, 1.0))
    assert abs(found["edited"].value) < 4 * found["edited"].error
    assert found["unconditional"].value > 5 * found["unconditional"].error > 0
    less = found["edited less unconditional"]
    assert less.value == pytest.approx(found["edited"].value - found["unconditional"].value)
    assert less.value < -5 * less.error


@pytest.mark.slow
def test_the_command_compares_crops_at_the_smallest_size(tmp_path: Path) -> None:
    models, folder, size = tmp_path / "models", tmp_path / "held_out", [48, 32, 36]
    parser = bundle_folders.workflow(ADNI, "edit.yaml", **bundle_folders.tiny(ADNI, image_size=size)).parser
    note = {"data": "embedded template cohort", "knobs": parser.get_parsed_content("knobs")}
    torch.manual_seed(0)
    save_weights(parser.get_parsed_content("network_def"), models / "model.pt", note)
    folder.mkdir()
    for number in range(6):
        values = gaussian_filter(np.random.default_rng(number).normal(size=size), 2) * 1000
        nib.save(nib.Nifti1Image(values.astype(np.float32), np.diag([2.8, 2.8, 2.8, 1])), folder / f"{number}.nii.gz")
    parts = [str(REPOSITORY / "benchmarks" / "editing.py"), f"--folder={folder}", "--volumes=3", f"--bundle={ADNI}"]
    parts += [f"--output={tmp_path / 'edits'}", "--crop=16", "--set", f'models_dir="{models}"']
    shown = run([*parts, "num_inference_steps=2", "resamples=1"], tmp_path)
    assert len(re.findall(r"border \d\.\d+, inside \d+\.\d+, outside 0,", shown)) == 3
    assert "KID of cubes of 16 voxels to those of 3 other real volumes" in shown
    lines = re.findall(r"^  (\w[\w ]*?) +(-?\d+\.\d{3}) ± \d+\.\d{3}$", shown, re.MULTILINE)
    assert [name for name, _ in lines] == ["before", "decoded", "edited", "unconditional", "edited less unconditional"]


@pytest.mark.slow
def test_too_few_volumes_and_label_maps_are_refused(tmp_path: Path) -> None:
    for folder, count, said in (
        ("few", 4, "at least 3 volumes to edit and 3 others"),
        ("labels", 6, "label maps such"),
    ):
        (tmp_path / folder).mkdir()
        for number in range(count):
            nib.save(nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4)), tmp_path / folder / f"{number}.nii.gz")
        done = python(
            str(REPOSITORY / "benchmarks" / "editing.py"), f"--folder={tmp_path / folder}", "--volumes=2",
            f"--bundle={ADNI}", f"--output={tmp_path / 'edits'}", "--crop=16",
        )  # fmt: skip
        assert done.returncode and said in done.stderr
