from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from two_stages import FIRST, start

from medical_diffusion_components.workflow import stages


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


def test_what_an_overlay_says_for_another_run_is_accepted_where_it_changes_nothing(configs: Path) -> None:
    (configs / "thin.yaml").write_text(yaml.safe_dump({"width": 4}))
    check = "$workflow.check_unused('train.yaml', ['width'], 'there is no network')"
    unused = ["$workflow.start_run('train_autoencoder.yaml')", check]
    start(configs, "thin.yaml", initialize=unused)
    said = "--width changes nothing in this run: there is no network"
    assert refusal(configs, width=5, initialize=unused) == said
    assert refusal(configs, "thin.yaml", width=5, initialize=unused) == said


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
