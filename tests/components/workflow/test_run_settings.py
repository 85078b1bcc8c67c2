from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from two_stages import SECOND, start

from medical_diffusion_components import workflow


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


def test_tiles_only_save_memory_and_are_no_settings() -> None:
    assert workflow.without_places({"tile_size": [64, 64, 64], "width": 4}) == {"width": 4}


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
