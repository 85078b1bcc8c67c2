"""Two processes pre-train and fine-tune a Swin UNETR as one does alone, at the same global batch.

What holds for every training alike (killed ranks, resuming) is in test_multi_gpu.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import several_processes
import torch
from bundle_folders import REPOSITORY, read, run, tiny
from monai.bundle import ConfigParser
from several_processes import NOTES, bundle_arguments, environment, notes, taking_notes
from warm_processes import torchrun

from medical_diffusion_components.cohorts.template import write_template_cohort

PRETRAIN, FINETUNE = (REPOSITORY / "bundles" / f"swin_unetr_{part}" for part in ("pretrain", "finetune"))
BATCH = {PRETRAIN: "batch_size", FINETUNE: "batch_size"}
STAGE = {PRETRAIN: "pretraining", FINETUNE: "finetuning"}
LOSS_TOLERANCE = 1e-4  # relative, of every term in every iteration
WEIGHT_TOLERANCE = 4e-3  # of the learning rate, which is as far as AdamW moves a weight in a step; root mean square
SIZE = (64, 64, 32)  # a norm over the two voxels that the lowest level of a smaller volume has amplifies rounding
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_template_cohort(tmp_path_factory.mktemp("cohort") / "cohort", 6, SIZE)


def settings(bundle: Path, folder: Path, data: Path, processes: int) -> dict[str, Any]:
    """Four global batches of 2."""
    epochs = {"epochs": 4, "num_training_volumes": 2} if bundle == PRETRAIN else {"epochs": 2}
    folders = {"output_dir": str(folder / "output"), "models_dir": str(folder / "models"), "dataset_dir": str(data)}
    return tiny(
        bundle,
        **folders,
        **epochs,
        device="cpu",
        roi_size=list(SIZE),
        checkpoint_minutes=0,
        **{BATCH[bundle]: 2 // processes},
    )


def checkpoint(bundle: Path, folder: Path) -> dict[str, Any]:
    newest = max((folder / "output" / STAGE[bundle] / "checkpoints").glob("checkpoint_*.pt"))
    return torch.load(newest, weights_only=True)


@pytest.mark.parametrize("bundle", [PRETRAIN, FINETUNE], ids=lambda path: path.name)
def test_losses_validation_and_weights_are_those_of_one_process(bundle: Path, data: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    with taking_notes(one / "notes"):
        run(bundle, "train.yaml", **settings(bundle, one, data, 1))
    two.mkdir()
    configs = ["train.yaml", "multi_gpu_train.yaml"]
    arguments = bundle_arguments(bundle, "training", configs, settings(bundle, two, data, 2))
    variables = environment(**{NOTES: str(two / "notes")})
    done = torchrun(2, several_processes.__file__, *arguments, cwd=two, env=variables)
    assert done.returncode == 0, done.stderr[-3000:]

    alone, *ranks = (notes(folder / "notes", "iterations", rank) for folder, rank in ((one, 0), (two, 0), (two, 1)))
    assert [i.number for i in alone] == [1, 2, 3, 4]
    for expected, *found in zip(alone, *ranks, strict=True):
        assert sorted(sum((i.cases for i in found), [])) == sorted(expected.cases)
        assert len({i.state for i in found}) == 1, "every rank holds the same network"
        for i in found:
            assert i.learning_rate == pytest.approx(expected.learning_rate, rel=1e-12)
            assert i.losses == pytest.approx(expected.losses, rel=LOSS_TOLERANCE, abs=LOSS_TOLERANCE)
    found, expected = checkpoint(bundle, two), checkpoint(bundle, one)
    assert found["best"] == pytest.approx(expected["best"], rel=LOSS_TOLERANCE)
    assert found["settings"] == expected["settings"], "so that either could resume from the other's"
    farthest = expected["settings"]["learning_rate"] * len(alone)  # that AdamW could go
    before, moved = weights_at_start(bundle), 0
    for name, weight in expected["objects"]["network"].items():
        assert rms(found["objects"]["network"][name] - weight) <= WEIGHT_TOLERANCE * farthest, name
        moved += rms(weight - before[name]) > 5 * WEIGHT_TOLERANCE * farthest
    assert moved > len(before) / 4, "the tolerance is small beside what training does"


def rms(difference: torch.Tensor) -> float:
    return float(difference.double().square().mean().sqrt())


def weights_at_start(bundle: Path) -> dict[str, torch.Tensor]:
    parser = ConfigParser(read(bundle / "configs" / "train.yaml") | tiny(bundle))
    torch.manual_seed(parser["seed"])
    return parser.get_parsed_content("network_def").state_dict()
