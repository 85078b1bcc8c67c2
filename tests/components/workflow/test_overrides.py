from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from two_stages import FIRST, start

from medical_diffusion_components.workflow import overrides, stages


@pytest.mark.parametrize(
    ("unknown", "hint"), [("widht", "did you mean width?"), ("step", "did you mean steps?"), ("zzz", "configs")]
)
def test_an_override_that_no_file_knows_is_refused(configs: Path, unknown: str, hint: str) -> None:
    with pytest.raises(RuntimeError) as error:
        start(configs, **{unknown: 1})
    assert isinstance(error.value.__cause__, ValueError)
    assert str(error.value.__cause__).startswith(f"--{unknown} is no setting of {configs}")
    assert str(error.value.__cause__).endswith(hint)
    assert sys.excepthook is stages._traceback_with_cause, "the last line would not tell"


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


@pytest.mark.parametrize("id", ["dataset_dir", "raw_dir", "weights", "pretrained_weights", "generator", "models_dir"])
def test_whatever_names_a_place_is_explained_when_the_command_line_makes_a_number_of_it(id: str) -> None:
    with pytest.raises(ValueError, match=rf"--{id} was read as 20231101, which is no path.*--{id} \./20231101"):
        overrides._check_folder_names({id: 20231101})


@pytest.mark.parametrize("value", ["false", "true", "no"])
def test_a_switch_that_the_command_line_gives_as_text_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match=f"--strict {value}: expected True or False.*got the text '{value}'"):
        overrides._check_switches({"strict": value}, {"strict": True})


def test_switches_and_other_texts_are_left_alone() -> None:
    overrides._check_switches(
        {"strict": False, "amp": "$x > 1", "name": "no"}, {"strict": True, "amp": True, "name": "a"}
    )


def test_a_place_that_a_configuration_works_out_is_no_name() -> None:
    overrides._check_folder_names({"data_dir": {"_target_": "resolve"}, "weights": "$@models_dir + '/m.pt'", "x": 3})


@pytest.mark.parametrize("value", ["$x", "$HOME/out", "$a b", "@y", "@y::z"])
def test_a_folder_to_be_made_whose_name_means_something_else_is_explained(value: str) -> None:
    with pytest.raises(ValueError, match=r"a name that begins with .* Write \./ before it \(--output_dir '\./"):
        overrides._check_folder_names({"output_dir": value})


@pytest.mark.parametrize("value", ["@models_dir", "@a::models_dir", "$@models_dir + '/x'", "$None", "./$x", "/tmp/@y"])
def test_references_expressions_and_paths_that_make_sense_are_left_alone(value: str) -> None:
    overrides._check_folder_names({"output_dir": value, "models_dir": "m", "a": {"models_dir": "m"}})
