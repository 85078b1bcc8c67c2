"""A training that writes down what it does, in one process or, started by torchrun as a script, in each of several."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import runpy
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from bundle_folders import used

from medical_diffusion_components.data import latents
from medical_diffusion_components.engines.vqgan_trainer import VQGANTrainer
from medical_diffusion_components.handlers.non_finite import StopOnNonFinite
from medical_diffusion_components.handlers.seeding import SeedIterations
from medical_diffusion_components.reports.montages import ReconstructionMontage, SampleMontage
from medical_diffusion_components.weights import unwrap

STAGES = ("autoencoder", "diffusion")  # any other training notes itself as the second
NOTES, KILL = "NOTES_FOLDER", "KILL"  # environment: where the notes go; "rank stage iteration" of a sudden death
# Adam makes a full step of a gradient that is zero but for rounding, as that of a bias before a norm is; with this
# much added to the denominator what several processes do can be compared with what one does.
ADAM_EPS = 1e-3


class Iteration(NamedTuple):
    """What one process notes after one iteration."""

    stage: str
    number: int
    losses: dict[str, float]  # as handlers see them
    cases: list[str]
    state: str  # hash of the trained network with its buffers, the codebook among them
    restarted: int
    learning_rate: float


def stage_of(engine: Any) -> str:
    return STAGES[not isinstance(engine, VQGANTrainer)]


def digest(module: torch.nn.Module) -> str:
    state = unwrap(module).state_dict()
    return hashlib.sha256(b"".join(tensor.cpu().numpy().tobytes() for tensor in state.values())).hexdigest()


def noted(engine: Any) -> Iteration:
    scalars = {name: value for name, value in engine.state.output.items() if torch.is_tensor(value) and not value.ndim}
    return Iteration(
        stage_of(engine),
        engine.state.iteration,
        {name: float(value.detach()) for name, value in scalars.items() if value.is_floating_point()},
        list(engine.state.batch["case_id"]),
        digest(engine.network),
        int(scalars.get("restarted_codes", 0)),
        engine.optimizer.param_groups[0]["lr"],
    )


@contextlib.contextmanager
def taking_notes(folder: Path, kill: str | None = None) -> Iterator[None]:
    """Within the block, note every iteration and every cached latent; at ``kill`` note the time and die.

    Pictures are left out: half of the time, and of no consequence. Adam and AdamW are tame (see ``ADAM_EPS``).
    """
    look, seed, write = StopOnNonFinite.__call__, SeedIterations.__call__, latents.write_atomically

    def note(name: str, entry: Any) -> None:
        with open(folder / f"{name}_{dist.get_rank() if dist.is_initialized() else 0}.jsonl", "a") as file:
            file.write(json.dumps(entry) + "\n")

    def look_and_note(self: StopOnNonFinite, engine: Any) -> None:
        look(self, engine)
        note("iterations", noted(engine))

    def seed_or_die(self: SeedIterations, engine: Any) -> None:
        if kill == f"{engine.state.rank} {stage_of(engine)} {engine.state.iteration}":
            note("deaths", time.time())
            os.kill(os.getpid(), signal.SIGKILL)
        seed(self, engine)

    def write_and_note(path: str, *writing: Any) -> Path:
        note("latents", Path(path).name)
        return write(path, *writing)

    folder.mkdir(parents=True, exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StopOnNonFinite, "__call__", look_and_note)
        patch.setattr(SeedIterations, "__call__", seed_or_die)
        for name in ("Adam", "AdamW"):
            patch.setattr(torch.optim, name, functools.partial(getattr(torch.optim, name), eps=ADAM_EPS))
        patch.setattr(latents, "write_atomically", write_and_note)
        patch.setattr(SampleMontage, "__call__", lambda *_: None)
        patch.setattr(ReconstructionMontage, "_draw", lambda *_: None)
        yield


def notes(folder: Path, name: str, rank: int = 0) -> list[Any]:
    file = folder / f"{name}_{rank}.jsonl"
    entries = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    return [Iteration(*entry) for entry in entries] if name == "iterations" else entries


def bundle_arguments(bundle: Path, id: str, configs: Sequence[str], overrides: dict[str, Any]) -> list[str]:
    """``run <id> --config_file ...`` as a person would type it behind ``-m monai.bundle``."""
    files = [str(bundle / "configs" / name) for name in configs]
    overrides = used(bundle, configs, overrides)
    return [
        "run",
        id,
        "--config_file",
        str(files),
        *(text for k, v in overrides.items() for text in (f"--{k}", str(v))),
    ]


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | more


if __name__ == "__main__":
    with taking_notes(Path(os.environ[NOTES]), os.environ.get(KILL)):
        runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
