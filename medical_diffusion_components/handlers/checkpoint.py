"""Checkpoints from which an interrupted training resumes, bit for bit."""

from __future__ import annotations

import errno
import logging
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from ignite.engine import Engine, Events

from medical_diffusion_components.data.loading import ResumableSampler
from medical_diffusion_components.distributed import gathered, world_size
from medical_diffusion_components.engine_state import running
from medical_diffusion_components.files import write_atomically
from medical_diffusion_components.handlers.non_finite import NonFiniteLossError
from medical_diffusion_components.handlers.optimiser_steps import optimiser_step
from medical_diffusion_components.weights import load_tensors, save_tensors, unwrap
from medical_diffusion_components.workflow.run_settings import changes, without_places

__all__ = ["CheckpointError", "TrainingCheckpoint"]

logger = logging.getLogger(__name__)

LOCK_SECONDS = 15  # for which a training that is just ending is waited for
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}  # what file systems without locks answer


class CheckpointError(ValueError):
    """A checkpoint, or a folder of checkpoints, that does not belong to this training."""


class TrainingCheckpoint:
    """Save all that training needs to resume, and resume from it when training starts.

    A checkpoint holds the state dicts of ``objects`` (networks with their codebook, optimisers, averaged weights), the
    iteration, the evaluator's best metric, and torch's random state. Each is written under a temporary name and renamed;
    the newest ``keep`` stay. At the start of a training the newest is loaded; one that is damaged is reported and the one
    before it used. Of several processes, the first writes and all read; they resume together or not at all. While one
    training runs, no second one may use the folder: each would resume from the other's checkpoints.

    The number of processes may change between two runs as long as the global batch stays: 8 devices with 2 cases each
    resume where 4 with 4 cases stopped.

    Attach it after every other handler, so that what it saves is complete.

    Args:
        folder: where the checkpoints are.
        objects: name -> anything with ``state_dict`` and ``load_state_dict``.
        sampler: the loader's sampler, which is given the place in the epoch to resume at.
        batch_size: samples per batch of that loader, on this process.
        evaluator: engine whose best metric goes along.
        settings: what must be the same when training resumes, as :func:`medical_diffusion_components.workflow.settings`
            gives it, with hashes of the data and of the weights that it starts from.
        every_minutes: time between two checkpoints within an epoch, always after an optimiser step; the end of an epoch
            always makes one.
        keep: how many to keep.
    """

    def __init__(
        self,
        folder: str | Path,
        objects: Mapping[str, Any],
        sampler: ResumableSampler,
        batch_size: int,
        evaluator: Engine | None = None,
        settings: Mapping[str, Any] | None = None,
        every_minutes: float = 10.0,
        keep: int = 2,
    ) -> None:
        self.folder = Path(folder)
        self.objects = {name: unwrap(item) for name, item in objects.items()}
        self.sampler = sampler
        self.batch_size = batch_size
        self.evaluator = evaluator
        self.settings = dict(settings or {})
        self.every_seconds = 60 * every_minutes
        self.keep = max(keep, 1)
        self.last_saved = time.monotonic()
        # one for each folder in a process, which may train in it again after an error; freed when the process ends
        self.lock = FileLock(self.folder / ".lock", is_singleton=True, fallback_to_soft=False)

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._claim_folder)
        engine.add_event_handler(Events.STARTED, self.resume)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._save_within_epoch)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)
        engine.add_event_handler(Events.COMPLETED, lambda _: self.lock.release(force=True))

    def _claim_folder(self, engine: Engine) -> None:
        """All processes raise what the first one finds, so that none waits for it."""
        problem = gathered(self._lock_folder() if running(engine).rank == 0 else "")[0]
        if problem:
            raise CheckpointError(problem)

    def _lock_folder(self) -> str:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self.lock.acquire(timeout=LOCK_SECONDS)
        except Timeout:
            return (
                f"another process is training in {self.folder}: wait for it, end it (a notebook whose training failed "
                "holds it, too), or use another --output_dir. Processes of torchrun train together only with "
                "multi_gpu_train.yaml behind train.yaml in --config_file"
            )
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            logger.warning(f"the file system of {self.folder} has no locks: start no second training there")
        return ""

    def _save_within_epoch(self, engine: Engine) -> None:
        state = running(engine)
        due = time.monotonic() - self.last_saved >= self.every_seconds
        ends_epoch = state.iteration % state.epoch_length == 0
        if due and not ends_epoch and optimiser_step(engine) is not None:
            self.save(engine)

    def save(self, engine: Engine) -> None:
        """Write the checkpoint of the present iteration (first rank only) and remove the oldest.

        Raises:
            NonFiniteLossError: something to save is infinite or not a number, so that no training could resume from it.
            OSError: it cannot be written; those before it are untouched.
        """
        self.last_saved = time.monotonic()
        state = running(engine)
        if state.rank > 0:
            return
        objects = {name: item.state_dict() for name, item in self.objects.items()}
        content: dict[str, Any] = {
            "iteration": state.iteration,
            "epoch_length": state.epoch_length,
            "settings": self._own_settings(),
            "random_state": torch.get_rng_state(),
            "objects": objects,
        }
        for name, item in objects.items():
            bad = _not_finite(item)
            if bad:
                raise NonFiniteLossError(
                    f"not finite after iteration {state.iteration}: {bad} of {name}. Nothing was saved; the last "
                    "checkpoint is from before it: resume with --amp False, or start afresh with a lower learning rate."
                )
        if self.evaluator is not None:
            best = running(self.evaluator)
            content["best"] = [float(best.best_metric), int(best.best_metric_epoch)]
        path = self.folder / f"checkpoint_{state.iteration:09d}.pt"
        write_atomically(path, lambda temporary: save_tensors(content, temporary))
        kept = [saved for saved in self.checkpoints() if saved <= path][: self.keep]
        for old in set(self.checkpoints()) - set(kept):  # also a damaged one that this training has not reached yet
            old.unlink()

    def checkpoints(self) -> list[Path]:
        """The checkpoints in the folder, newest first."""
        return sorted(self.folder.glob("checkpoint_*.pt"), reverse=True)

    def resume(self, engine: Engine) -> None:
        """Load the newest readable checkpoint, if there is one.

        Raises:
            CheckpointError: checkpoints are there but none is readable, they are from other data, settings or
                architecture, or not all processes find the same.
        """
        if running(engine).rank == 0:
            for unfinished in self.folder.glob(".*_checkpoint_*.pt"):  # of a process killed while it wrote
                shutil.rmtree(unfinished) if unfinished.is_dir() else unfinished.unlink()
        paths = self.checkpoints()
        read = ((path, self._read(path)) for path in paths)
        newest = next(((path, content) for path, content in read if content is not None), None)
        self._agree(newest[0].name if newest else "none")
        if newest is not None:
            self._restore(engine, *newest)
        elif paths:
            raise CheckpointError(
                f"none of the {len(paths)} checkpoints in {self.folder} can be read; move them away to start afresh"
            )

    def _read(self, path: Path) -> dict | None:
        try:
            return load_tensors(path)
        except Exception as error:
            reason = str(error).partition("\n")[0]
            logger.error(
                f"checkpoint {path} cannot be read ({type(error).__name__}: {reason}); trying the one before it"
            )
        return None

    def _agree(self, found: str) -> None:
        """Ranks that resumed from different places would train different networks, or wait for each other forever."""
        everyone = gathered(found)
        if len(set(everyone)) > 1:
            where = ", ".join(f"rank {rank}: {name}" for rank, name in enumerate(everyone))
            raise CheckpointError(
                f"not all processes find the same readable checkpoint in {self.folder} ({where}): --output_dir must be on "
                "a file system that all machines share"
            )

    def _own_settings(self) -> dict[str, Any]:
        return {**self.settings, "batch_size": self.batch_size * world_size()}

    def _restore(self, engine: Engine, path: Path, content: dict) -> None:
        self._check_settings(engine, path, content)
        if missing := [name for name in self.objects if name not in content["objects"]]:
            raise CheckpointError(
                f"{path} holds no {', '.join(missing)}: another version made it. Resume with that version, or use another "
                "--output_dir to start afresh."
            )
        for name, item in self.objects.items():
            try:
                item.load_state_dict(content["objects"][name])
            except (KeyError, RuntimeError, ValueError) as error:
                # of torch's list of all tensors the first is enough
                cause = " ".join(line.strip() for line in str(error).splitlines()[:2])
                raise CheckpointError(f"{path} does not fit the configured {name}: {cause}") from error
        state, iteration = running(engine), content["iteration"]
        state.iteration = iteration
        state.epoch = iteration // state.epoch_length
        self.sampler.skip_once(iteration % state.epoch_length * self.batch_size)
        torch.set_rng_state(content["random_state"])
        if self.evaluator is not None:
            best = running(self.evaluator)
            best.best_metric, best.best_metric_epoch = content["best"]
        logger.info(f"resuming from {path}: iteration {iteration}, epoch {state.epoch}")

    def _check_settings(self, engine: Engine, path: Path, content: dict) -> None:
        if "settings" not in content:
            raise CheckpointError(
                f"{path} was made by a version before 0.2.0, which did not keep the settings: whether it belongs to this "
                "training cannot be known. Use another --output_dir to start afresh."
            )
        before = {**without_places(content["settings"]), "epoch_length": content["epoch_length"]}
        changed = changes(before, {**self._own_settings(), "epoch_length": engine.state.epoch_length})
        if changed:
            raise CheckpointError(
                f"{path} is from another training: {changed}. Use the same settings to resume, or another --output_dir "
                "to start afresh."
            )


def _not_finite(item: Any, name: str = "") -> str | None:
    """Name of the first tensor inside a state dict that holds an infinity or a NaN."""
    if torch.is_tensor(item):
        return None if not item.is_floating_point() or bool(torch.isfinite(item).all()) else name
    parts = item.items() if isinstance(item, Mapping) else enumerate(item) if isinstance(item, list) else ()
    found = (_not_finite(part, f"{name}.{key}" if name else str(key)) for key, part in parts)
    return next((bad for bad in found if bad is not None), None)
