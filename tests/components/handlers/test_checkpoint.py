from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from engines_for_tests import Trainer
from filelock import FileLock
from ignite.engine import Events

from medical_diffusion_components.handlers.checkpoint import CheckpointError, TrainingCheckpoint
from medical_diffusion_components.handlers.non_finite import NonFiniteLossError


class Stop(Exception):
    pass


def training(
    folder: Path, epochs: int = 3, stop: int | None = None, width: int = 3, rank: int = 0, **options: Any
) -> Trainer:
    """A training with checkpoints; ``stop`` raises at the start of that iteration."""
    trainer = Trainer(epochs, rank=rank, width=width)
    if stop is not None:
        trainer.add_event_handler(Events.ITERATION_STARTED(once=stop), interrupt)
    attach(trainer, folder, **options)
    return trainer


def attach(trainer: Trainer, folder: Path, **options: Any) -> TrainingCheckpoint:
    objects = {"network": trainer.network, "optimizer": trainer.optimizer}
    options = {"every_minutes": 0.0, "batch_size": 2} | options
    checkpoint = TrainingCheckpoint(folder, objects, trainer.sampler, **options)
    checkpoint.attach(trainer)
    return checkpoint


def interrupt(*_: Any) -> None:
    raise Stop


def names(folder: Path) -> list[int]:
    return sorted(int(path.stem.removeprefix("checkpoint_")) for path in folder.glob("checkpoint_*.pt"))


def weights(trainer: Trainer) -> list[torch.Tensor]:
    moments = [value for state in trainer.optimizer.state.values() for value in state.values()]
    return [*trainer.network.state_dict().values(), *moments]


@pytest.mark.parametrize("stop", range(1, 10))
def test_a_training_stopped_anywhere_goes_on_to_the_same_end(tmp_path: Path, stop: int) -> None:
    whole = training(tmp_path / "whole")
    whole.run()
    stopped = training(tmp_path / "stopped", stop=stop)
    with pytest.raises(Stop):
        stopped.run()
    rest = training(tmp_path / "stopped")
    rest.run()
    assert stopped.seen + rest.seen == whole.seen
    assert all(torch.equal(one, other) for one, other in zip(weights(rest), weights(whole)))


def test_a_second_training_in_the_folder_is_refused_while_the_first_runs(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("medical_diffusion_components.handlers.checkpoint.LOCK_SECONDS", 0.2)
    lock = f"lock = FileLock({str(tmp_path / '.lock')!r}); lock.acquire()"
    code = f"from filelock import FileLock; {lock}; print('held', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(CheckpointError, match=f"another process is training in {tmp_path}.*multi_gpu_train.yaml"):
            training(tmp_path).run()
        other.kill()
    training(tmp_path).run()


def test_a_file_system_without_locks_is_told_of_and_trained_on(tmp_path: Path, monkeypatch, caplog) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    training(tmp_path).run()
    assert "has no locks" in caplog.text and names(tmp_path)


def test_a_finished_training_frees_its_folder(tmp_path: Path) -> None:
    trainer = training(tmp_path)
    trainer.run()
    with FileLock(tmp_path / ".lock", blocking=False):
        pass


def test_without_checkpoints_within_epochs_the_epoch_is_repeated(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        training(tmp_path, stop=6, every_minutes=1e9).run()
    rest = training(tmp_path, every_minutes=1e9)
    rest.run()
    assert [iteration for iteration, _ in rest.seen] == [4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize(("accumulation_steps", "expected"), [(1, [1, 2, 3, 4, 5, 6]), (2, [2, 3, 5, 6])])
def test_checkpoints_fall_on_optimiser_steps(tmp_path: Path, accumulation_steps: int, expected: list[int]) -> None:
    trainer = training(tmp_path, epochs=2, keep=100)
    trainer.accumulation_steps = accumulation_steps  # as MONAI's trainer has it
    trainer.run()
    assert names(tmp_path) == expected


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_are_kept(tmp_path: Path, keep: int) -> None:
    training(tmp_path, keep=keep).run()
    assert names(tmp_path) == list(range(10 - keep, 10))


@pytest.mark.parametrize("keep", [1, 2])
def test_a_damaged_newest_one_does_not_crowd_out_what_follows(tmp_path: Path, keep: int) -> None:
    with pytest.raises(Stop):
        training(tmp_path, stop=6, keep=3).run()
    (tmp_path / "checkpoint_000000005.pt").write_bytes(b"half")
    with pytest.raises(Stop):
        training(tmp_path, stop=5, keep=keep, every_minutes=1e9).run()  # it resumes from 4
    assert 4 in names(tmp_path)
    checkpoint = TrainingCheckpoint(tmp_path, {}, None, batch_size=2, keep=keep)
    checkpoint.save(SimpleNamespace(state=SimpleNamespace(rank=0, iteration=4, epoch_length=3)))
    assert names(tmp_path) == [3, 4][-keep:]


def test_the_rest_of_a_killed_writing_is_cleared_away(tmp_path: Path) -> None:
    training(tmp_path, epochs=1).run()
    (tmp_path / ".abc_checkpoint_000000004.pt" / "content").mkdir(parents=True)
    for name in (".abc_checkpoint_000000003.pt", ".other"):  # the first as an earlier version wrote them
        (tmp_path / name).write_bytes(b"half")
    training(tmp_path, epochs=1, rank=1).run()
    assert len(list(tmp_path.glob(".abc*"))) == 2, "only the rank that writes clears away"
    training(tmp_path, epochs=1).run()
    assert not list(tmp_path.glob(".abc*")) and (tmp_path / ".other").exists()


class Averages:
    """State in a list of state dicts, as averages of several lengths have it."""

    def state_dict(self) -> dict[str, Any]:
        return {"gammas": [1.0], "averages": [{"a": torch.zeros(2)}, {"a": torch.tensor([0.0, torch.inf])}]}


def test_state_that_is_not_finite_is_found_within_lists(tmp_path: Path) -> None:
    trainer = Trainer(1)
    TrainingCheckpoint(tmp_path, {"averages": Averages()}, trainer.sampler, 2).attach(trainer)
    with pytest.raises(NonFiniteLossError, match=r"averages\.1\.a of averages"):
        trainer.run()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["network", "optimizer"])
def test_what_nobody_could_go_on_from_is_not_saved(tmp_path: Path, value: float, where: str) -> None:
    trainer = Trainer(3)

    def spoil(engine: Trainer) -> None:
        target = engine.network.bias if where == "network" else engine.optimizer.state[engine.network.bias]["exp_avg"]
        target.detach()[1] = value

    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=5), spoil)
    attach(trainer, tmp_path)
    with pytest.raises(NonFiniteLossError, match=rf"iteration 5: .*(bias|exp_avg) of {where}.*Nothing was saved"):
        trainer.run()
    assert names(tmp_path) == [3, 4]


def test_only_the_first_rank_writes_but_all_go_on(tmp_path: Path) -> None:
    training(tmp_path, epochs=1, rank=1).run()
    assert names(tmp_path) == []
    training(tmp_path, epochs=1).run()
    other = training(tmp_path, epochs=2, rank=1)
    other.run()
    assert [iteration for iteration, _ in other.seen] == [4, 5, 6]


def test_the_best_metric_goes_along(tmp_path: Path) -> None:
    def evaluator(best: float, epoch: int) -> SimpleNamespace:
        return SimpleNamespace(state=SimpleNamespace(best_metric=best, best_metric_epoch=epoch))

    training(tmp_path, epochs=1, evaluator=evaluator(0.25, 1)).run()
    fresh = evaluator(-1, -1)
    training(tmp_path, epochs=1, evaluator=fresh).run()
    assert (fresh.state.best_metric, fresh.state.best_metric_epoch) == (0.25, 1)


def test_the_random_state_goes_along(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        training(tmp_path, stop=6).run()
    saved = torch.load(tmp_path / "checkpoint_000000005.pt", weights_only=True)["random_state"]
    trainer = training(tmp_path)
    torch.manual_seed(99)
    states = []
    trainer.add_event_handler(Events.STARTED, lambda *_: states.append(torch.get_rng_state()))
    trainer.run()
    assert torch.equal(states[0], saved)


def test_a_training_that_is_over_stays_over(tmp_path: Path) -> None:
    training(tmp_path).run()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    again = training(tmp_path)
    completed = []
    again.add_event_handler(Events.COMPLETED, completed.append)
    again.run()
    assert again.seen == [] and len(completed) == 1
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_more_epochs_than_before_are_made_up_for(tmp_path: Path) -> None:
    training(tmp_path, epochs=1).run()
    longer, whole = training(tmp_path, epochs=3), training(tmp_path / "whole", epochs=3)
    longer.run()
    whole.run()
    assert all(torch.equal(one, other) for one, other in zip(weights(longer), weights(whole)))


@pytest.mark.parametrize("damage", ["truncated", "one bit", "empty", "no archive"])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_used(tmp_path: Path, damage: str, caplog) -> None:
    with pytest.raises(Stop):
        training(tmp_path, stop=6).run()
    newest = tmp_path / "checkpoint_000000005.pt"
    content = bytearray(newest.read_bytes())
    if damage == "one bit":
        weight = torch.load(newest, weights_only=True)["objects"]["network"]["weight"]
        content[content.index(weight.numpy().tobytes())] ^= 1
    newest.write_bytes({"truncated": content[:-100], "empty": b"", "no archive": b"hello"}.get(damage, content))
    rest = training(tmp_path)
    with caplog.at_level(logging.INFO):
        rest.run()
    assert rest.seen[0][0] == 5
    assert (
        f"checkpoint {newest} cannot be read" in caplog.text and "checkpoint_000000004.pt: iteration 4" in caplog.text
    )


class Bomb:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("exploded",)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"iteration": 3, "settings": Bomb()}, tmp_path / "checkpoint_000000003.pt")
    with pytest.raises(CheckpointError, match=r"none of the 1 checkpoints in .* can be read"):
        training(tmp_path).run()
    assert not Path("exploded").exists()


def test_every_setting_that_differs_is_named_with_both_values(tmp_path: Path) -> None:
    training(tmp_path, epochs=1, settings={"data": "abc", "seed": 0, "rate": 0.1}).run()
    with pytest.raises(
        CheckpointError, match=r"3\.pt is from another training: data was abc, now xyz; seed was 0, now 1\."
    ):
        training(tmp_path, epochs=1, settings={"data": "xyz", "seed": 1, "rate": 0.1}).run()
    with pytest.raises(CheckpointError, match="training: rate was 0.1, now not set"):
        training(tmp_path, epochs=1, settings={"data": "abc", "seed": 0}).run()


def test_what_a_note_says_is_no_setting(tmp_path: Path) -> None:
    """A version that writes more into the notes beside weights resumes what an earlier one began."""
    training(tmp_path, epochs=1, settings={"rate": 0.1, "made_from": "$dict(data='abc')"}).run()
    assert training(tmp_path, epochs=2, settings={"rate": 0.1}).run() is None


def test_a_checkpoint_that_does_not_keep_its_settings_is_refused(tmp_path: Path) -> None:
    """As those of version 0.1.0, which kept a few facts under another name."""
    training(tmp_path, epochs=1).run()
    for path in tmp_path.glob("*.pt"):
        content = torch.load(path, weights_only=True)
        content["made_from"] = content.pop("settings")
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"checkpoint_0+3\.pt was made by a version before 0\.2\.0"):
        training(tmp_path, epochs=1).run()


def test_a_checkpoint_without_something_that_this_version_keeps_is_refused_by_its_name(tmp_path: Path) -> None:
    training(tmp_path, epochs=1).run()
    for path in tmp_path.glob("*.pt"):
        content = torch.load(path, weights_only=True)
        del content["objects"]["optimizer"]
        torch.save(content, path)
    again = training(tmp_path, epochs=1)
    before = [weight.clone() for weight in weights(again)]
    with pytest.raises(CheckpointError, match=r"checkpoint_0+3\.pt holds no optimizer: another version made it"):
        again.run()
    assert all(torch.equal(one, other) for one, other in zip(weights(again), before)), "nothing is half loaded"


def test_another_architecture_is_named_in_one_line(tmp_path: Path) -> None:
    training(tmp_path, epochs=1).run()
    with pytest.raises(
        CheckpointError, match=r"does not fit the configured network: .*size mismatch for weight"
    ) as error:
        training(tmp_path, epochs=1, width=4).run()
    assert "\n" not in str(error.value)


def test_a_failed_writing_leaves_what_was_there(tmp_path: Path, monkeypatch) -> None:
    trainer = training(tmp_path, keep=5)
    save = torch.save

    def full_disk(content: Any, file: Any) -> None:
        if content["iteration"] == 4:
            file.write(b"half")
            raise OSError(28, "No space left on device")
        save(content, file)

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match=r"cannot write .*checkpoint_000000004.pt .*No space left on device"):
        trainer.run()
    left = {path.name for path in tmp_path.iterdir()} - {".lock"}
    assert left == {f"checkpoint_{n:09d}.pt" for n in (1, 2, 3)}


def test_processes_that_find_different_checkpoints_stop(tmp_path: Path, monkeypatch) -> None:
    """As on machines that do not share the folder: each would go on from its own place."""
    training(tmp_path, epochs=1).run()
    monkeypatch.setattr("medical_diffusion_components.handlers.checkpoint.gathered", lambda found: [found, "none"])
    with pytest.raises(CheckpointError, match=r"rank 0: checkpoint_0+3.pt, rank 1: none.* all machines share"):
        training(tmp_path, epochs=2).run()


def test_the_global_batch_is_what_must_stay(tmp_path: Path, monkeypatch) -> None:
    training(tmp_path, epochs=1).run()
    monkeypatch.setattr("medical_diffusion_components.handlers.checkpoint.world_size", lambda: 2)
    training(tmp_path, epochs=2, batch_size=1).run()
    with pytest.raises(CheckpointError, match="batch_size was 2, now 4"):
        training(tmp_path, epochs=2).run()
