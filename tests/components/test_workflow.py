from __future__ import annotations

import json
import logging
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from monai.bundle import ConfigParser, ConfigWorkflow
from torch import nn

from medical_diffusion_components import workflow
from medical_diffusion_components.weights import save_weights

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


@pytest.fixture(autouse=True)
def undisturbed(monkeypatch) -> None:
    """Put back what starting a workflow changes in the process."""
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", root.handlers[:])
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    """A bundle with two stages that write down with which settings they ran."""
    folder = tmp_path / "two_stages" / "configs"
    folder.mkdir(parents=True)
    (folder / "train_autoencoder.yaml").write_text(yaml.safe_dump(FIRST, sort_keys=False))
    (folder / "train.yaml").write_text(yaml.safe_dump(SECOND, sort_keys=False))
    (folder / "thin.yaml").write_text(yaml.safe_dump({"width": 4, "devices": "$3 + 1"}))
    (folder / "metadata.json").write_text(json.dumps({"version": "1.2.3", "name": "two stages"}))
    return folder


def start(configs: Path, *overlays: str, file: str = "train.yaml", **overrides: Any) -> ConfigWorkflow:
    files = [str(configs / name) for name in (file, *overlays)]
    started = ConfigWorkflow(files, logging_file=False, workflow_type="train", **overrides)
    started.initialize()
    return started


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


def test_without_a_workflow_there_is_nothing_to_train_the_first_stage_with(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="run train_autoencoder.yaml"):
        workflow.ensure_first_stage(str(tmp_path / "first.pt"), None)


def test_a_first_stage_of_invented_data_does_not_serve_a_users_data(tmp_path: Path) -> None:
    path = str(save_weights(nn.Linear(1, 1), tmp_path / "first.pt", {"data": "embedded template cohort"}))
    workflow.ensure_first_stage(path, None)
    with pytest.raises(
        ValueError, match=r"first\.pt was trained on the embedded template cohort, but dataset_dir is /mine"
    ):
        workflow.ensure_first_stage(path, "/mine")


@pytest.mark.parametrize("path", ["two_stages/configs", "configs", "."])
def test_a_bundle_knows_its_folder_by_any_relative_path(configs: Path, path: str, monkeypatch) -> None:
    place = {"two_stages/configs": configs.parents[1], "configs": configs.parent, ".": configs}[path]
    monkeypatch.chdir(place)
    start(Path(path)).run()
    assert [file.relative_to(configs.parent) for file in configs.parent.rglob("*.pt")] == [Path("models/first.pt")]


def test_with_a_bare_parser_the_bundle_is_the_current_folder(configs: Path, monkeypatch) -> None:
    monkeypatch.chdir(configs.parent)
    assert ConfigParser(SECOND).get_parsed_content("bundle_root") == str(configs.parent)


@pytest.mark.parametrize(
    ("unknown", "hint"), [("widht", "did you mean width?"), ("step", "did you mean steps?"), ("zzz", "configs")]
)
def test_an_override_that_no_file_knows_is_refused(configs: Path, unknown: str, hint: str) -> None:
    with pytest.raises(RuntimeError) as error:
        start(configs, **{unknown: 1})
    assert isinstance(error.value.__cause__, ValueError)
    assert str(error.value.__cause__).startswith(f"--{unknown} is no setting of {configs}")
    assert str(error.value.__cause__).endswith(hint)
    assert sys.excepthook is workflow._traceback_with_cause, "the last line would not tell"


def refusal(configs: Path, *overlays: str, **options: Any) -> str:
    with pytest.raises(RuntimeError) as error:
        start(configs, *overlays, **options)
    assert isinstance(error.value.__cause__, ValueError)
    return str(error.value.__cause__)


def test_an_override_that_nothing_in_the_run_uses_is_refused_naming_who_does(configs: Path) -> None:
    told = refusal(configs, file="train_autoencoder.yaml", steps=3)
    assert told == "--steps changes nothing in this run: it is a setting of train.yaml"


def test_an_override_is_accepted_where_the_run_passes_it_on(configs: Path) -> None:
    first = {id: value for id, value in FIRST.items() if id != "devices"} | {"lamps": 2}
    (configs / "train_autoencoder.yaml").write_text(yaml.safe_dump(first | {"training": ["$print(@lamps)"]}))
    start(configs, lamps=3)
    assert "--lamps changes nothing" in refusal(configs, lamps=3, initialize=["$workflow.start_run()"])


def test_an_overlay_may_hold_settings_of_several_files(configs: Path) -> None:
    (configs / "thin.yaml").write_text(yaml.safe_dump({"width": 4, "steps": 7}))
    start(configs, "thin.yaml", file="train_autoencoder.yaml")
    assert "--steps changes nothing" in refusal(configs, "thin.yaml", file="train_autoencoder.yaml", steps=8)


def last_lines(error: Exception, capsys) -> list[str]:
    try:
        raise error
    except Exception:
        workflow._traceback_with_cause(*sys.exc_info())
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


def test_an_error_that_is_not_wrapped_is_not_repeated(capsys) -> None:
    assert last_lines(chained(ValueError("plain"), KeyError("below")), capsys)[-1] == "ValueError: plain"


def settings_of(configs: Path, call: str = "workflow.settings()", **overrides: Any) -> dict[str, Any]:
    """What ``call`` gives inside a run that uses all knobs of the second stage."""
    printed = f"$Path(@bundle_root, 'settings').write_text(json.dumps({call}))"
    use = "$[@depth, @steps, @train, @network, @dataset_dir]"
    start(configs, **{"training": [printed, use], "run": "%training"} | overrides).run()
    return json.loads((configs.parent / "settings").read_text())


BLOCK = {"_target_": "builtins.dict", "sizes": ["@width", 2], "parts": [{"rate": 0.1}, {"rate": 0.2}]}


@pytest.fixture
def with_network(configs: Path) -> Path:
    more = {"network": BLOCK, "depth": "$@width // 4", "epochs": 3, "final_lr": 1.0, "batch_size": 1}
    (configs / "train.yaml").write_text(yaml.safe_dump(SECOND | more))
    return configs


def test_settings_are_all_that_the_run_uses_down_to_single_values(with_network: Path) -> None:
    assert settings_of(with_network) == {
        "depth": 4,
        "width": 16,
        "steps": 300,
        "train::epochs": 10,
        "train::rate": 0.5,
        "network::_target_": "builtins.dict",
        "network::sizes": ["@width", 2],
        "network::parts::0::rate": 0.1,
        "network::parts::1::rate": 0.2,
    }


@pytest.mark.parametrize("changed", [{"steps": 301}, {"train#rate": 0.4}, {"network#parts#1#rate": 3}, {"width": 20}])
def test_whatever_is_changed_changes_the_settings(with_network: Path, changed: dict) -> None:
    before, now = settings_of(with_network), settings_of(with_network, **changed)
    assert before != now and all(f"now {value}" in workflow.changes(before, now) for value in changed.values())


def test_places_are_no_settings_and_what_an_expression_comes_to_counts(with_network: Path) -> None:
    before = settings_of(with_network)
    assert settings_of(with_network, models_dir=str(with_network), dataset_dir="elsewhere") == before
    assert settings_of(with_network, depth=4) == before
    wrapped = {"_target_": "torch.nn.parallel.DistributedDataParallel", "module": BLOCK, "device_ids": None}
    use = {"training": ["$Path(@bundle_root, 'settings').write_text(json.dumps(workflow.settings('network')))"]}
    found = []
    for block in (BLOCK, wrapped):
        (with_network / "train.yaml").write_text(yaml.safe_dump(SECOND | {"network": block}))
        found.append(settings_of(with_network, **use))
    assert found[0] == found[1] and found[0]["network::_target_"] == "builtins.dict"


def test_hashes_stand_in_for_places(with_network: Path) -> None:
    assert settings_of(with_network, "workflow.settings(data='abc')")["data"] == "abc"


@pytest.mark.parametrize(("final_lr", "epochs"), [(1.0, "any"), (1, "any"), (0.5, 7)])
def test_the_number_of_epochs_counts_where_the_learning_rate_depends_on_it(
    with_network: Path, final_lr: float, epochs: Any
) -> None:
    use = (
        "$[Path(@bundle_root, 'settings').write_text(json.dumps(workflow.settings())), @epochs, @final_lr, @batch_size]"
    )
    found = settings_of(with_network, final_lr=final_lr, epochs=7, batch_size=2, training=[use])
    assert found == {"final_lr": final_lr, "epochs": epochs}


def test_the_settings_of_one_id_are_its_own_and_of_what_it_refers_to(with_network: Path) -> None:
    assert settings_of(with_network, "workflow.settings('depth')") == {"depth": 4, "width": 16}


def test_without_a_configuration_there_are_no_settings() -> None:
    with pytest.raises(RuntimeError, match="no configuration is being evaluated"):
        workflow.settings()


def test_changes_name_every_setting_with_both_values() -> None:
    assert (
        workflow.changes({"a": 1, "b": None, "c": 2}, {"a": 1.5, "c": 2}) == "a was 1, now 1.5; b was None, now not set"
    )
    assert workflow.changes({"a": 1}, {"a": 1.0}) == ""


def test_the_version_is_that_of_the_metadata(configs: Path) -> None:
    assert workflow.bundle_version(str(configs.parent)) == "two_stages 1.2.3"


@pytest.mark.parametrize("id", ["dataset_dir", "raw_dir", "weights", "pretrained_weights", "generator", "models_dir"])
def test_whatever_names_a_place_is_explained_when_the_command_line_makes_a_number_of_it(id: str) -> None:
    with pytest.raises(ValueError, match=rf"--{id} was read as 20231101, which is no path.*--{id} \./20231101"):
        workflow._check_folder_names({id: 20231101})


@pytest.mark.parametrize("value", ["false", "true", "no"])
def test_a_switch_that_the_command_line_gives_as_text_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match=f"--strict {value}: expected True or False.*got the text '{value}'"):
        workflow._check_switches({"strict": value}, {"strict": True})


def test_switches_and_other_texts_are_left_alone() -> None:
    workflow._check_switches(
        {"strict": False, "amp": "$x > 1", "name": "no"}, {"strict": True, "amp": True, "name": "a"}
    )


def test_a_place_that_a_configuration_works_out_is_no_name() -> None:
    workflow._check_folder_names({"data_dir": {"_target_": "resolve"}, "weights": "$@models_dir + '/m.pt'", "x": 3})


@pytest.mark.parametrize("value", ["$x", "$HOME/out", "$a b", "@y", "@y::z"])
def test_a_folder_to_be_made_whose_name_means_something_else_is_explained(value: str) -> None:
    with pytest.raises(ValueError, match=r"a name that begins with .* Write \./ before it \(--output_dir '\./"):
        workflow._check_folder_names({"output_dir": value})


@pytest.mark.parametrize("value", ["@models_dir", "@a::models_dir", "$@models_dir + '/x'", "$None", "./$x", "/tmp/@y"])
def test_references_expressions_and_paths_that_make_sense_are_left_alone(value: str) -> None:
    workflow._check_folder_names({"output_dir": value, "models_dir": "m", "a": {"models_dir": "m"}})


def test_a_cause_of_several_lines_is_one_last_line(capsys: pytest.CaptureFixture) -> None:
    try:
        raise ValueError("expected one thing,\n  got another")
    except ValueError:
        workflow._traceback_with_cause(*sys.exc_info())
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last == "Stopped: ValueError: expected one thing, got another"
