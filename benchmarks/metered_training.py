"""A stage of a bundle's training that notes what it costs, and ends at given costs.

`gan_comparison.py` and `time_to_quality.py` call it.

Its one argument is JSON: ``stage``, ``overlays`` (names of files), ``settings`` (id -> value; those that the stage does not
have are left out), ``meter`` (where the notes go), ``targets`` (name -> number) and ``weights`` (to be kept at each).
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bundle_step import BUNDLES
from measuring import called

from medical_diffusion_components.files import write_atomically, write_json

STAGES = {  # stage -> bundle, configuration, knob of the batch size
    "autoencoder": ("adni_ldm", "train_autoencoder.yaml", "autoencoder_batch_size"),
    "diffusion": ("adni_ldm", "train.yaml", "batch_size"),
    "gan": ("adni_gan", "train.yaml", "batch_size"),
}
FOR_EVER = 1.0e9  # minutes between two checkpoints within an epoch: they fall on its end, where the meter is read
STARTED = time.time()


class Meter:
    """Handler that notes after every epoch what a training has cost and seen, and ends it when all targets are reached.

    Args:
        file: of the notes: ``rows`` of iteration, epoch, seconds and volumes; ``batch_size``; ``targets``, name -> number,
            with the ``weights`` to keep at each, and the ones ``reached``; ``done``. The name is that of one of these four
            numbers; several targets of the same have "_" and anything after it, such as ``epoch_50``.
    """

    def __init__(self, file: str) -> None:
        self.file = Path(file)
        self.notes = json.loads(self.file.read_text())
        self.carried: float | None = None  # seconds that earlier processes have spent, up to where this one resumes

    def attach(self, engine: Any) -> None:
        from ignite.engine import Events

        engine.add_event_handler(Events.EPOCH_STARTED, self.begin)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def begin(self, engine: Any) -> None:
        """Forget what a process did that was interrupted before its checkpoint."""
        if self.carried is None:
            self.notes["rows"] = [row for row in self.notes["rows"] if row["iteration"] <= engine.state.iteration]
            self.carried = self.notes["rows"][-1]["seconds"] if self.notes["rows"] else 0.0

    def __call__(self, engine: Any) -> None:
        iteration = engine.state.iteration
        seconds = round((self.carried or 0.0) + clock(), 1)
        volumes = iteration * self.notes["batch_size"]
        row = {"iteration": iteration, "epoch": engine.state.epoch, "seconds": seconds, "volumes": volumes}
        self.notes["rows"].append(row)
        targets, reached = self.notes["targets"], self.notes["reached"]
        for name in targets.keys() - reached.keys():
            if row[name.partition("_")[0]] >= targets[name]:
                keep_weights(Path(self.notes["weights"]), self.file.parent / name)
                reached[name] = row
        write_json(self.file, self.notes)
        if targets and targets.keys() == reached.keys():
            engine.terminate()


def read_notes(file: Path) -> dict[str, Any]:
    """The meter's notes; those of a training that has not begun where there are none."""
    return json.loads(file.read_text()) if file.is_file() else {"rows": [], "reached": {}, "done": False}


def train_metered(
    folder: Path, stage: str, overlays: Sequence[str], settings: Mapping[str, Any], targets: Mapping[str, float]
) -> None:
    """Whatever is left of a stage's training, in a process of its own.

    Args:
        folder: gets ``output``, ``models``, the meter's notes ``STAGE.json`` and the weights at each target.
        stage: one of ``STAGES``.
        overlays: names of files beside the stage's configuration.
        settings: id -> value.
        targets: see :class:`Meter`.
    """
    meter = folder / f"{stage}.json"
    if read_notes(meter)["done"]:
        return
    places = {"output_dir": str(folder / "output"), "models_dir": str(folder / "models")}
    job = {
        "stage": stage,
        "overlays": list(overlays),
        "settings": {**settings, "checkpoint_minutes": FOR_EVER, **places},
        "meter": str(meter),
        "targets": dict(targets),
        "weights": str(folder / "models" / "model.pt"),
    }
    print(f"{folder.name}: training, {stage}", flush=True)
    called([__file__, json.dumps(job)])


def minutes_of() -> str:
    """What is counted: time of the processor, or by the clock where a GPU does the work."""
    import torch

    return "clock" if torch.cuda.is_available() else "processor"


def clock() -> float:
    """Seconds of this process since its start, as :func:`minutes_of` says."""
    import torch

    if minutes_of() == "processor":
        return time.process_time()
    torch.cuda.synchronize()
    return time.time() - STARTED


def keep_weights(weights: Path, folder: Path) -> None:
    """A copy of weights and of their note."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in (weights, weights.with_suffix(".json")):
        write_atomically(folder / file.name, lambda temporary, file=file: shutil.copyfile(file, temporary))


def known(files: Sequence[Path], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that these configurations have."""
    from monai.bundle import ConfigParser

    ids = {id for file in files for id in ConfigParser.load_config_file(file)}
    return {id: value for id, value in settings.items() if id in ids}


def train(job: Mapping[str, Any]) -> None:
    """One stage of one training, in this process, with a meter as its last handler."""
    from monai.bundle import ConfigWorkflow

    bundle, config, batch_size = STAGES[job["stage"]]
    files = [BUNDLES / bundle / "configs" / name for name in (config, *job["overlays"])]
    settings = known([files[0]], job["settings"])
    workflow = ConfigWorkflow(config_file=[str(file) for file in files], workflow_type="train", **settings)
    file = Path(job["meter"])
    notes = read_notes(file) | {
        "batch_size": workflow.parser.get(batch_size),
        "targets": job["targets"],
        "weights": job["weights"],
    }
    write_json(file, notes)
    workflow.parser["train"]["handlers"].append({"_target_": "metered_training.Meter", "file": str(file)})
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    write_json(file, json.loads(file.read_text()) | {"done": True})


if __name__ == "__main__":
    train(json.loads(sys.argv[1]))
