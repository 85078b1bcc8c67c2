"""A bundle of two stages, in little, and how a run of it begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from monai.bundle import ConfigWorkflow

IMPORTS = ["$import json", "$from pathlib import Path", "$import medical_diffusion_components.workflow as workflow"]
FIRST = {
    "imports": IMPORTS,
    "bundle_root": "$workflow.bundle_root()",
    "models_dir": "$@bundle_root + '/models'",
    "width": 16,
    "depth": "$@width // 2",
    "devices": 1,
    "train": {"epochs": 10, "rate": 0.5},
    "initialize": ["$workflow.start_run()"],
    "training": [
        "$Path(@models_dir).mkdir(parents=True)",
        "$Path(@models_dir, 'first.pt').write_text(json.dumps([@width, @depth, @devices, @train]))",
    ],
    "run": "%training",
}
SECOND = FIRST | {
    "depth": 4,
    "steps": 300,
    "dataset_dir": None,
    "initialize": ["$workflow.start_run('train_autoencoder.yaml')"],
    "training": ["$workflow.ensure_first_stage(@models_dir + '/first.pt', @dataset_dir)", "$print(@steps)"],
}


def start(configs: Path, *overlays: str, file: str = "train.yaml", **overrides: Any) -> ConfigWorkflow:
    files = [str(configs / name) for name in (file, *overlays)]
    started = ConfigWorkflow(files, logging_file=False, workflow_type="train", **overrides)
    started.initialize()
    return started
