"""Trained bundles and small folders of images, made once for all tests of this folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from bundle_folders import Trained, run, tiny, write_volume
from filelock import FileLock


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder that the worker processes of one test run have in common."""
    base = tmp_path_factory.getbasetemp()
    return base if worker_id == "master" else base.parent


@pytest.fixture(scope="session")
def trained(shared: Path) -> Callable[[Path], Trained]:
    """Bundle -> its trained form. Trained by whoever asks first; what is in the folder must not be changed."""

    def train(bundle: Path) -> Trained:
        folder = shared / "trained" / bundle.name
        overrides = tiny(bundle, output_dir=str(folder / "output"), models_dir=str(folder / "models"))
        done = folder / "printed.json"
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(str(folder) + ".lock"):
            if not done.is_file():
                configs = ["train.yaml", "inference.json", "evaluate.yaml"]
                configs = [config for config in configs if (bundle / "configs" / config).is_file()]
                done.write_text(json.dumps({config: run(bundle, config, **overrides) for config in configs}))
        return Trained(bundle, folder, overrides, json.loads(done.read_text()))

    return train


@pytest.fixture(scope="session")
def audited_output(shared: Path, trained: Callable[[Path], Trained]) -> Callable[[Path], Path]:
    """Bundle -> the outputs of its trained form after an audit of its samples, which must not be changed either."""

    def audit(bundle: Path) -> Path:
        done, folder = trained(bundle), shared / "audited" / bundle.name
        folder.parent.mkdir(exist_ok=True)
        with FileLock(str(folder) + ".lock"):
            if not folder.exists():
                unfinished = Path(shutil.copytree(done.output, f"{folder}_unfinished"))
                run(bundle, "audit.yaml", **done.overrides | {"output_dir": str(unfinished)})
                unfinished.rename(folder)
        return folder

    return audit


@pytest.fixture(scope="session")
def nifti_folder(shared: Path) -> Path:
    """A user's own data: ten plain NIfTI files, left-anterior-superior, with two voxel sizes; must not be changed."""
    folder = shared / "own_data"
    with FileLock(str(folder) + ".lock"):
        if not folder.exists():
            unfinished = shared / "own_data_unfinished"
            for number in range(10):
                write_volume(unfinished / f"site_{number % 2}" / f"head_{number}.nii.gz", number)
            unfinished.rename(folder)
    return folder


@pytest.fixture
def own_data(nifti_folder: Path, tmp_path: Path) -> Path:
    """A copy of the user's own data, to be spoilt."""
    return Path(shutil.copytree(nifti_folder, tmp_path / "own_data"))
