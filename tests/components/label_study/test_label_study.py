from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from medical_diffusion_components.label_study.study import LabelStudy, LabelStudyRun, num_patients

# Stand-ins for the bundles' configurations: they write down what they were run with, one line per run.
NOTE = (
    "$open(@log, 'a').write(repr((@stage, @pretrained_weights, @num_labelled, @seed, @label_seed, @shift)) + chr(10))"
)
MAKE = "$os.makedirs({0}, exist_ok=True)"
COMMON = {
    "log": "",
    "output_dir": "",
    "models_dir": "",
    "pretrained_weights": None,
    "num_labelled": None,
    "seed": 0,
    "label_seed": None,
    "shift": 0,
}
PRETRAIN = [NOTE, MAKE.format("@models_dir"), "$open(@models_dir + '/model.pt', 'w').write('weights ' + str(@shift))"]
EVALUATE = [
    NOTE,
    MAKE.format("@output_dir + '/evaluation'"),
    "$open(@output_dir + '/evaluation/evaluation.json', 'w').write('{\"cases\": {}}')",
]


@pytest.fixture
def configs(tmp_path: Path) -> dict[str, list[str]]:
    files = {}
    for stage, steps in (("pretrain", PRETRAIN), ("finetune", [NOTE]), ("evaluate", EVALUATE)):
        path = tmp_path / "bundle" / "configs" / f"{stage}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "metadata.json").write_text("{}")
        path.write_text(
            yaml.safe_dump({**COMMON, "imports": ["$import os", "$import time"], "stage": stage, "run": steps})
        )
        files[f"{stage}_configs"] = [str(path)]
    return files


@pytest.fixture
def study(configs: dict, tmp_path: Path):
    def make(**changes) -> LabelStudy:
        options = {
            "folder": tmp_path / "study",
            "arms": {"scratch": None, "synthetic": {"pretrain": {"shift": 7}, "finetune": {"shift": 5}}},
            "labelled": [1, 3],
            "seeds": [0, 1],
            "pretrain_settings": {"log": str(tmp_path / "log.txt")},
            "settings": {"log": str(tmp_path / "log.txt")},
        }
        return LabelStudy(**{**options, **configs, **changes})

    return make


def logged(tmp_path: Path) -> list[tuple]:
    return [eval(line) for line in (tmp_path / "log.txt").read_text().splitlines()]


def test_every_arm_number_and_seed_is_run_once_with_its_weights(study, tmp_path: Path) -> None:
    results = study().run()
    weights = str(tmp_path / "study" / "pretrained" / "synthetic" / "models" / "model.pt")
    runs = [(arm, number, seed) for seed in (0, 1) for number in (1, 3) for arm in ("scratch", "synthetic")]
    assert [(r["arm"], r["num_labelled"], r["seed"]) for r in results] == runs
    start = {"scratch": (None, 0), "synthetic": (weights, 5)}
    tuned = [
        (stage, start[arm][0], number, seed, seed, start[arm][1])
        for arm, number, seed in runs
        for stage in ("finetune", "evaluate")
    ]
    assert logged(tmp_path) == [("pretrain", None, None, 0, None, 7), *tuned]


def test_what_has_a_result_is_not_run_again(study, tmp_path: Path) -> None:
    first = study().run()
    before = logged(tmp_path)
    (tmp_path / "study" / "runs" / LabelStudyRun("scratch", 3, 1).name / "result.json").unlink()
    assert study().run() == first
    assert logged(tmp_path)[len(before) :] == [("finetune", None, 3, 1, 1, 0), ("evaluate", None, 3, 1, 1, 0)]


def test_a_study_can_grow(study, tmp_path: Path) -> None:
    study().run()
    before = len(logged(tmp_path))
    assert len(study(seeds=[0, 1, 2]).run()) == 12
    assert {seeds for *_, seed, label_seed, _ in logged(tmp_path)[before:] for seeds in (seed, label_seed)} == {2}


def test_where_it_runs_and_what_no_stage_knows_are_no_other_settings(study, tmp_path: Path) -> None:
    log = {"log": str(tmp_path / "log.txt")}
    study(settings={**log, "seeds": [0, 1], "device": "cpu"}).run()
    before = logged(tmp_path)
    study(settings={**log, "seeds": [0], "device": "cuda:1"}).run()
    assert logged(tmp_path) == before


def test_results_of_other_settings_are_refused(study, tmp_path: Path) -> None:
    study().run()
    with pytest.raises(ValueError, match=r"result\.json was made with other settings \(data_sha256 was , now other\)"):
        study(data_sha256="other").run()
    with pytest.raises(ValueError, match=r"done\.json was made with other settings \(shift was 7, now 8\)"):
        study(arms={"synthetic": {"pretrain": {"shift": 8}}}).run()


def test_given_weights_are_used_as_they_are(study, tmp_path: Path) -> None:
    weights = tmp_path / "model.pt"
    weights.write_bytes(b"these")
    study(arms={"given": {"weights": str(weights)}}, labelled=[2], seeds=[4]).run()
    assert logged(tmp_path) == [(stage, str(weights), 2, 4, 4, 0) for stage in ("finetune", "evaluate")]
    weights.write_bytes(b"those")
    with pytest.raises(ValueError, match="pretrained_sha256 was"):
        study(arms={"given": {"weights": str(weights)}}, labelled=[2], seeds=[4]).run()


def test_an_arm_has_one_origin(study) -> None:
    with pytest.raises(ValueError, match="arm both: expected weights or a pre-training, got both"):
        study(arms={"both": {"weights": "model.pt", "pretrain": {}}})


PROCESS = """
import json, sys
from medical_diffusion_components.label_study.study import LabelStudy
print(len(LabelStudy(**json.loads(sys.argv[1])).run()))
"""


@pytest.mark.slow
def test_two_processes_share_the_runs(study, configs: dict, tmp_path: Path) -> None:
    slow = yaml.safe_load(Path(configs["finetune_configs"][0]).read_text())
    slow["run"] = [*slow["run"], "$time.sleep(0.3)"]
    Path(configs["finetune_configs"][0]).write_text(yaml.safe_dump(slow))
    options = {"folder": str(tmp_path / "study"), "arms": {"a": {"pretrain": {}}, "b": None}, "labelled": [1, 2, 3]}
    log = {"log": str(tmp_path / "log.txt")}
    options |= {"seeds": [0, 1], "pretrain_settings": log, "settings": log, **configs}
    command = [sys.executable, "-c", PROCESS, json.dumps(options)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=300)[0].split()[-1] for process in both] == ["12", "12"]
    done = logged(tmp_path)
    assert len(done) == len(set(done)) == 1 + 2 * 12


@pytest.mark.parametrize(
    ("percentages", "expected"), [([100], [46]), ([1, 2, 5, 10], [1, 2, 5]), ([50, 20], [9, 23]), ([0.1], [1])]
)
def test_percentages_become_patients(percentages: list, expected: list) -> None:
    assert num_patients(percentages, 46) == expected


@pytest.mark.parametrize("percentages", [[], [0], [101], [-5, 10]])
def test_percentages_that_are_none_are_refused(percentages: list) -> None:
    with pytest.raises(ValueError, match=r"percentages in \(0, 100\]"):
        num_patients(percentages, 46)
