"""Two processes train both stages together and leave what one leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bundle_folders import Trained, for_bundles_with, tiny


@pytest.mark.slow
@for_bundles_with("train_autoencoder.yaml", "multi_gpu_train.yaml", at_most=1)
def test_two_processes_leave_what_one_leaves(bundle: Path, nifti_folder: Path, tmp_path: Path, trained) -> None:
    folders = {"output_dir": str(tmp_path / "output"), "models_dir": str(tmp_path / "models")}
    overrides = tiny(bundle, **folders, dataset_dir=str(nifti_folder), device="cpu", adversarial_start=1)
    configs = [str(bundle / "configs" / name) for name in ("train.yaml", "multi_gpu_train.yaml")]
    options = [text for id, value in overrides.items() for text in (f"--{id}", str(value))]
    launch = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0", "--standalone"]
    command = [
        sys.executable,
        *launch,
        "-m",
        "monai.bundle",
        "run",
        "training",
        "--config_file",
        str(configs),
        *options,
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    two, one = Trained(bundle, tmp_path, overrides, {}), trained(bundle)
    for name in ("model.pt", "model_autoencoder.pt"):
        found, expected = (torch.load(run.models / name, weights_only=True) for run in (two, one))
        assert {key: value.shape for key, value in found.items()} == {
            key: value.shape for key, value in expected.items()
        }
        assert all(torch.isfinite(value).all() for value in found.values())
    assert {path.name for path in two.models.iterdir()} == {path.name for path in one.models.iterdir()}
    assert json.loads((two.models / "model.json").read_text())["cases"]["training"] == 6
    for stage, batches in (("autoencoder", 2), ("diffusion", 2)):  # 3 cases for each process, in batches of 2
        newest = sorted((two.output / stage / "checkpoints").iterdir())[-1]
        content = torch.load(newest, weights_only=True)
        assert content["iteration"] == batches
        assert not [name for part in content["objects"].values() for name in part if str(name).startswith("module.")]
