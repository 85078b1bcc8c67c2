"""Training, sampling and judging on a device that is not the processor; ``pretend_device.py`` stands in for a GPU."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_folders import BUNDLES, Trained, tiny
from torch.utils import backend_registration
from warm_processes import python

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
        reason="this torch cannot register a device that is written in Python",
    ),
]
TESTS = Path(__file__).parents[1]
THERE = f"""
import sys
sys.path[:0] = ["{TESTS}", "{TESTS / "bundles"}"]
import torch
from pathlib import Path
from bundle_folders import run
from pretend_device import NAME, PretendDevice, register
register()
with PretendDevice():
    {{commands}}
"""
ADNI, PRETRAIN = (next(path for path in BUNDLES if path.name == name) for name in ("adni_ldm", "swin_unetr_pretrain"))


def there(commands: str) -> str:
    """What Python prints that runs these commands where there is such a device."""
    done = python("-c", THERE.format(commands=commands))
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_there(bundle: Path, *configs: str, **overrides: Any) -> str:
    settings = dict(overrides, device="pretend:0")
    return there("\n    ".join(f"print(run(Path({str(bundle)!r}), {config!r}, **{settings!r}))" for config in configs))


def test_the_device_is_one_where_mistakes_show() -> None:
    mixed = """
    here, there = torch.ones(3), torch.ones(3, device=NAME)
    assert there.device.type == NAME and (there + there.sum()).cpu().tolist() == [4.0, 4.0, 4.0]
    mixes = [lambda: here + there, lambda: torch.stack([here, there]), lambda: there.mul_(here), lambda: here[there > 0]]
    for mix in mixes:
        try:
            mix()
        except RuntimeError as error:
            print(error)
"""
    assert there(mixed).count("tensors on pretend:0 and one of (3,) on cpu") == 4


def test_both_stages_and_samples_are_as_on_the_processor(trained: Callable[[Path], Trained], tmp_path: Path) -> None:
    here = trained(ADNI)
    places = {"output_dir": str(tmp_path / "output"), "models_dir": str(tmp_path / "models")}
    printed = run_there(ADNI, "train.yaml", "inference.json", "evaluate.yaml", **{**here.overrides, **places})
    assert "evaluation: " in printed
    for name in ("model_autoencoder", "model"):
        here_state, there_state = (
            torch.load(folder / f"{name}.pt", weights_only=True) for folder in (here.models, tmp_path / "models")
        )
        assert all(tensor.device.type == "cpu" for tensor in there_state.values())
        assert there_state.keys() == here_state.keys()
        differences = torch.cat([(there_state[k].double() - here_state[k].double()).abs().ravel() for k in here_state])
        assert differences.mean() < 2e-6, "a step of another size or direction would move every weight by 1e-4"
    for file in (here.output / "samples").glob("*.nii.gz"):
        folders = (file.parent, tmp_path / "output" / "samples")
        here_volume, there_volume = (np.asanyarray(nib.load(folder / file.name).dataobj) for folder in folders)
        # Rounding differs between the forms of both devices, and may choose another code here and there.
        assert np.abs(there_volume - here_volume).mean() < 0.002 * np.ptp(here_volume)


def test_pretraining_and_a_control_branch(trained: Callable[[Path], Trained], tmp_path: Path) -> None:
    places = {"output_dir": str(tmp_path / "output"), "models_dir": str(tmp_path / "models")}
    run_there(PRETRAIN, "train.yaml", **tiny(PRETRAIN, **places))
    notes = json.loads((tmp_path / "models" / "model.json").read_text())
    assert notes["validation"]["val_loss"] > 0
    here = trained(ADNI)
    models = shutil.copytree(here.models, tmp_path / "controlled")
    run_there(ADNI, "train_control.yaml", **tiny(ADNI, models_dir=str(models), output_dir=str(tmp_path / "control")))
    assert (models / "control.pt").is_file()
