from __future__ import annotations

import os
import shutil
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import nn
from two_stages import FIRST, SECOND, start

from medical_diffusion_components.weights import save_weights
from medical_diffusion_components.workflow import check_choice, stages


@pytest.mark.parametrize(
    ("unknown", "hint"),
    [("widht", "did you mean width?"), ("step", "did you mean steps?"), ("zzz", "configs"), ("versions", "configs")],
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


def test_settings_that_refer_to_each_other_are_named_in_their_circle(configs: Path) -> None:
    said = refusal(configs, steps="$@steps + 1")
    assert said == "expected settings that have a value, got some that refer to themselves: steps -> steps"
    said = refusal(configs, width="@depth", depth="$int(@steps)", steps="$@width // 2")
    ids = said.rpartition(": ")[2].split(" -> ")
    assert set(pairwise(ids)) == {("width", "depth"), ("depth", "steps"), ("steps", "width")}
    start(configs, width="$@steps + @steps", depth="@width")


def test_an_override_is_accepted_where_the_run_passes_it_on(configs: Path, capsys: pytest.CaptureFixture) -> None:
    first = {id: value for id, value in FIRST.items() if id != "devices"} | {"lamps": 2}
    (configs / "train_autoencoder.yaml").write_text(yaml.safe_dump(first | {"training": ["$print(@lamps)"]}))
    start(configs, lamps=3).run()
    assert capsys.readouterr().out.startswith("3\n"), "the first stage got it, though train.yaml has none"
    assert "--lamps changes nothing" in refusal(configs, lamps=3, initialize=["$workflow.start_run()"])


def test_an_overlay_may_hold_settings_of_several_files(configs: Path) -> None:
    (configs / "thin.yaml").write_text(yaml.safe_dump({"width": 4, "steps": 7}))
    start(configs, "thin.yaml", file="train_autoencoder.yaml")
    assert "--steps changes nothing" in refusal(configs, "thin.yaml", file="train_autoencoder.yaml", steps=8)


def test_what_an_overlay_says_for_another_run_is_accepted_where_it_changes_nothing(configs: Path) -> None:
    (configs / "thin.yaml").write_text(yaml.safe_dump({"width": 4}))
    check = "$workflow.check_unused('train.yaml', ['width'], 'there is no network')"
    unused = ["$workflow.start_run('train_autoencoder.yaml')", check]
    start(configs, "thin.yaml", initialize=unused)
    said = "--width changes nothing in this run: there is no network"
    assert refusal(configs, width=5, initialize=unused) == said
    assert refusal(configs, "thin.yaml", width=5, initialize=unused) == said


def test_an_edited_copy_of_a_file_is_taken_at_its_own_word(configs: Path) -> None:
    """Both have the same ids: that width is a number in the original, and what it is, says nothing of the copy."""
    edited = FIRST | {"width": [16, 8], "depth": "$@width[1]", "devices": 2, "training": ["$print(@depth)"]}
    (configs / "train_autoencoder_mine.yaml").write_text(yaml.safe_dump(edited, sort_keys=False))
    start(configs, file="train_autoencoder_mine.yaml", train={"epochs": 10, "rate": 0.5})
    assert "--width 7: expected a list" in refusal(configs, file="train_autoencoder_mine.yaml", width=7)
    assert "--width [7]: expected a whole number" in refusal(configs, file="train_autoencoder.yaml", width=[7])


def test_a_file_that_was_edited_is_read_again(configs: Path) -> None:
    given = {"file": "train_autoencoder.yaml", "lamps": 3}
    assert "--lamps is no setting" in refusal(configs, **given)
    (configs / "train.yaml").write_text(yaml.safe_dump(SECOND | {"lamps": 2, "training": ["$print(@lamps)"]}))
    os.utime(configs / "train.yaml", ns=(0, 0))
    assert refusal(configs, **given).endswith("it is a setting of train.yaml")


def test_a_second_file_may_say_what_runs(configs: Path, capsys: pytest.CaptureFixture) -> None:
    second = {"evaluating": ["$print('width', @width)"], "run": "%evaluating"}
    (configs / "evaluate.yaml").write_text(yaml.safe_dump(second))
    start(configs, "evaluate.yaml", file="train_autoencoder.yaml").run()
    assert "width 16" in capsys.readouterr().out


def test_a_setting_of_another_choice_is_refused(configs: Path) -> None:
    check = "$workflow.check_choice('train.yaml', 'kind', 'deep', {'deep': ['steps'], 'wide': ['width']})"
    chosen = ["$workflow.start_run('train_autoencoder.yaml')", check]
    start(configs, steps=8, initialize=chosen)
    said = "--width changes nothing in this run: it is a setting of --kind wide, not of deep"
    assert refusal(configs, width=5, initialize=chosen) == said
    with pytest.raises(ValueError, match="--kind must be one of deep, wide, got 'high'"):
        check_choice("train.yaml", "kind", "high", {"deep": [], "wide": []})


@pytest.mark.parametrize(
    ("id", "value", "said"),
    [
        ("models_dir", 2023, "--models_dir was read as 2023, which is no path"),
        ("width", "wide", "--width wide: expected a whole number"),
        ("amp", "maybe", "--amp maybe: expected True or False"),
        ("device", "gpu", "--device gpu: expected one that is here"),
        ("spacing", [3.0, 2.0, 2.0], ""),
    ],
)
def test_a_value_that_a_setting_cannot_have_ends_the_run_before_it_begins(
    id: str, value: Any, said: str, configs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = str(save_weights(nn.Linear(1, 1), configs.parent / "w.pt", {"spacing": [2.0, 2.0, 2.0]}))
    trained = "$trained_spacing(@weights, [1.0, 1.0, 1.0])"
    more = {"amp": True, "device": "cpu", "weights": weights, "spacing": trained}
    used = "$print(@amp, @device, @spacing)"
    imports = [*FIRST["imports"], "$from medical_diffusion_components.weights import trained_spacing"]
    content = FIRST | more | {"imports": imports, "training": [*FIRST["training"], used]}
    (configs / "train_autoencoder.yaml").write_text(yaml.safe_dump(content))
    if said:
        assert said in refusal(configs, file="train_autoencoder.yaml", **{id: value})
        return
    start(configs, file="train_autoencoder.yaml", spacing=[2.01, 2.0, 2.0])
    assert "--spacing" not in caplog.text, "one hundredth is rounding"
    start(configs, file="train_autoencoder.yaml", **{id: value})
    assert "--spacing [3.0, 2.0, 2.0]: the weights were trained with voxels of [2.0, 2.0, 2.0] mm" in caplog.text


def test_bundles_that_were_written_at_once_are_not_mistaken_for_each_other(
    configs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From inside each bundle its files have the same relative names; a check-out gives them the same time."""
    other = configs.parents[1] / "other" / "configs"
    shutil.copytree(configs, other)
    content = yaml.safe_load((other / "train_autoencoder.yaml").read_text())
    (other / "train_autoencoder.yaml").write_text(
        yaml.safe_dump(content | {"lamps": 2, "training": ["$print(@lamps)"]})
    )
    for folder in (other, configs):
        for file in folder.iterdir():
            os.utime(file, ns=(0, 0))
        monkeypatch.chdir(folder.parent)
        start(Path("configs"), file="train_autoencoder.yaml")
