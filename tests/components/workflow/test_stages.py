from __future__ import annotations

import json
import logging
import shutil
import sys
from itertools import pairwise
from pathlib import Path
from pydoc import ErrorDuringImport

import pytest
import yaml
from monai.utils import OptionalImportError
from torch import nn
from two_stages import FIRST, SECOND, start

from medical_diffusion_components.data.datasets import nifti_files
from medical_diffusion_components.weights import save_weights
from medical_diffusion_components.workflow import stages

RUN_CONFIG = "$from medical_diffusion_components.workflow.stages import run_config"


def first_stage(configs: Path) -> list:
    return json.loads((configs.parent / "models" / "first.pt").read_text())


def test_the_first_stage_is_trained_as_its_own_file_says(configs: Path) -> None:
    start(configs).run()
    assert first_stage(configs) == [16, 8, 1, {"epochs": 10, "rate": 0.5}]


def test_the_first_stage_gets_the_overrides_it_knows(configs: Path) -> None:
    """From the command line, from an overlay, and inside a block; not what the second stage has by itself."""
    start(configs, "thin.yaml", steps=7, **{"train#epochs": 2}).run()
    assert first_stage(configs) == [4, 2, 4, {"epochs": 2, "rate": 0.5}]


def test_the_command_line_wins_over_an_overlay(configs: Path) -> None:
    start(configs, "thin.yaml", width=6, depth=1).run()
    assert first_stage(configs)[:2] == [6, 1]


def test_a_first_stage_that_is_there_is_not_trained_again(configs: Path) -> None:
    start(configs).run()
    start(configs, width=99).run()
    assert first_stage(configs)[0] == 16


def test_a_stage_in_a_folder_of_its_own_is_not_what_the_command_line_named(configs: Path, monkeypatch) -> None:
    """As the runs of a label study are, whose folders lie below the one that was given."""
    trained = "$run_config([@bundle_root + '/configs/train_autoencoder.yaml'], {'models_dir': @models_dir + @below})"
    study = FIRST | {"below": "/a", "imports": [*FIRST["imports"], RUN_CONFIG], "training": [trained]}
    (configs / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    folder = str(configs.parent / "given")
    monkeypatch.setattr(sys, "argv", ["run", "--models_dir", folder])
    start(configs, file="study.yaml", models_dir=folder).run()
    assert Path(folder, "a", "first.pt").is_file()
    with pytest.raises(RuntimeError) as refused:
        start(configs, file="train_autoencoder.yaml", models_dir=f"{folder}/a")
    assert "--models_dir was given as" in str(refused.value.__cause__)


def test_a_warning_comes_once_in_each_run_of_a_process(configs: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The second stage lists the folder, too; a second run, as in a notebook, has its own reader."""
    folder = configs.parent / "volumes"
    folder.mkdir()
    (folder / "scan.mha").touch()
    files = "$nifti_files(Path(@folder))"
    for name, config in (("train_autoencoder.yaml", FIRST), ("train.yaml", SECOND)):
        imports = [*config["imports"], "$from medical_diffusion_components.data.datasets import nifti_files"]
        more = {"imports": imports, "folder": str(folder), "training": [files, *config["training"], files]}
        (configs / name).write_text(yaml.safe_dump(config | more, sort_keys=False))
    for number in (1, 2):
        start(configs, models_dir=str(configs.parent / str(number))).run()
        assert sum("1 images that are not NIfTI" in message for message in caplog.messages) == number


def test_a_stage_of_another_bundle_has_its_own_metadata(configs: Path) -> None:
    """What the running bundle says of itself is not passed on with its settings."""
    other = configs.parents[1] / "other" / "configs"
    shutil.copytree(configs, other)
    (other / "metadata.json").write_text(json.dumps({"version": "9.9.9"}))
    told = FIRST | {"training": ["$Path(@models_dir + '.txt').write_text(@_meta_#version)"]}
    (other / "train_autoencoder.yaml").write_text(yaml.safe_dump(told, sort_keys=False))
    trained = f"$run_config(['{other}/train_autoencoder.yaml'], workflow.changed_settings('train.yaml'))"
    running = SECOND | {
        "imports": [*SECOND["imports"], RUN_CONFIG],
        "training": [trained, "$print(@steps, @dataset_dir)"],
    }
    (configs / "train.yaml").write_text(yaml.safe_dump(running, sort_keys=False))
    start(configs).run()
    assert (other.parent / "models.txt").read_text() == "9.9.9"


def test_processes_wait_for_the_weights_of_the_first_stage(configs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, there = configs.parent / "models" / "first.pt", []
    monkeypatch.setattr(stages, "wait_for_all", lambda: there.append(weights.is_file()))
    start(configs).run()
    assert there == [True]


@pytest.mark.parametrize(("rank", "level", "common"), [("0", logging.NOTSET, "1"), ("1", logging.INFO, "")])
def test_of_several_processes_the_first_alone_says_what_happens(
    rank: str,
    level: int,
    common: str,
    configs: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """And what all find; what one finds in its share of the cases, it says itself."""
    monkeypatch.setenv("RANK", rank)
    (configs / "scan.mha").touch()
    package = stages.__name__.partition(".")[0]
    try:
        start(configs)
        nifti_files(configs)
        logging.getLogger(f"{package}.preparation.scan_remarks").warning("of one case")
        assert logging.root.manager.disable == level
        ours = [record.getMessage() for record in caplog.records if record.name.startswith(package)]
        assert [message[:1] for message in ours] == [*common, "o"]
    finally:
        logging.disable(logging.NOTSET)
        for room in ("data", "weights", "workflow"):
            logging.getLogger(f"{package}.{room}").setLevel(logging.NOTSET)


def test_a_training_ends_with_the_epoch_of_its_weights(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    path = str(save_weights(nn.Linear(1, 1), tmp_path / "model.pt", {"epoch": 7}))
    stages.say_weights(path)
    assert f"training is complete: weights of epoch 7 at {path}" in caplog.text


def test_without_a_workflow_there_is_nothing_to_train_the_first_stage_with(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="run train_autoencoder.yaml"):
        stages.ensure_first_stage(str(tmp_path / "first.pt"), None)


def test_a_first_stage_of_invented_data_does_not_serve_a_users_data(tmp_path: Path) -> None:
    path = str(save_weights(nn.Linear(1, 1), tmp_path / "first.pt", {"data": "embedded template cohort"}))
    stages.ensure_first_stage(path, None)
    with pytest.raises(
        ValueError, match=r"first\.pt was trained on the embedded template cohort, but dataset_dir is /mine"
    ):
        stages.ensure_first_stage(path, "/mine")


def last_lines(error: Exception, capsys) -> list[str]:
    try:
        raise error
    except Exception:
        stages._traceback_with_cause(*sys.exc_info())
    return capsys.readouterr().err.strip().splitlines()


def chained(*errors: Exception) -> Exception:
    for error, cause in pairwise(errors):
        error.__cause__ = cause
    return errors[0]


def test_the_cause_that_monai_wraps_is_the_last_line(capsys) -> None:
    error = chained(
        RuntimeError("Failed to evaluate ConfigExpression: 'x'"),
        RuntimeError("Failed to instantiate y"),
        RuntimeError("applying transform LoadVolumed"),
        ValueError("head.nii.gz:\n  is damaged"),
        EOFError("deep below"),
    )
    assert last_lines(error, capsys)[-1] == "Stopped: ValueError: head.nii.gz: is damaged"


def test_the_cause_in_a_loaders_process_is_the_last_line(capsys) -> None:
    text = (
        "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback:\n  x\nValueError: head is damaged\n"
    )
    error = chained(RuntimeError("Failed to evaluate x"), RuntimeError(text))
    assert last_lines(error, capsys)[-1] == "Stopped: RuntimeError: ValueError: head is damaged"


@pytest.mark.parametrize(
    "error",
    [
        ErrorDuringImport("room", (ModuleNotFoundError, ModuleNotFoundError("No module named 'not_here'"), None)),
        OptionalImportError("import room (No module named 'not_here').\n\nFor details ...\n\nOriginal traceback:\n  x"),
        ModuleNotFoundError("No module named 'not_here.dataset'; 'not_here' is not a package"),
    ],
    ids=["of a class", "of an import", "plain"],
)
def test_a_package_that_is_missing_is_the_last_line(error: Exception, capsys) -> None:
    last = last_lines(chained(RuntimeError("Failed to evaluate x"), error), capsys)[-1]
    assert last == "Stopped: ModuleNotFoundError: no module named 'not_here', which this needs: pip install not_here"


@pytest.mark.parametrize(("module", "package"), [("ignite.engine", "pytorch-ignite"), ("yaml", "pyyaml")])
def test_a_package_is_named_as_pip_knows_it(module: str, package: str, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "find_spec", lambda _: None)
    error = chained(RuntimeError("Failed to evaluate x"), ModuleNotFoundError(f"No module named {module!r}"))
    assert last_lines(error, capsys)[-1].endswith(f"pip install {package}")


def test_the_cause_in_a_writer_is_the_last_line(capsys) -> None:
    error = RuntimeError("cannot find a suitable writer for x.nii.gz\n  File: y\nValueError: no space left")
    assert last_lines(error, capsys)[-1] == "Stopped: RuntimeError: ValueError: no space left"


def test_a_wrong_name_in_an_installed_package_is_no_missing_package(capsys) -> None:
    error = chained(RuntimeError("Failed to evaluate x"), ModuleNotFoundError("No module named 'torch.nothing'"))
    assert last_lines(error, capsys)[-1] == "Stopped: ModuleNotFoundError: No module named 'torch.nothing'"


def test_a_process_of_several_ends_by_the_error_with_its_cause(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []
    monkeypatch.setattr(stages, "end_by_error", ended.append)
    last_lines(chained(RuntimeError("Failed to evaluate x"), ValueError("head.nii.gz is\n damaged")), capsys)
    assert ended == ["ValueError: head.nii.gz is damaged"]


def test_an_error_that_is_not_wrapped_is_not_repeated(capsys) -> None:
    assert last_lines(chained(ValueError("plain"), KeyError("below")), capsys)[-1] == "ValueError: plain"


def test_a_cause_of_several_lines_is_one_last_line(capsys: pytest.CaptureFixture) -> None:
    try:
        raise ValueError("expected one thing,\n  got another")
    except ValueError:
        stages._traceback_with_cause(*sys.exc_info())
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last == "Stopped: ValueError: expected one thing, got another"
