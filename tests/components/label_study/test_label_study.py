from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from warm_processes import python

from medical_diffusion_components.label_study.study import (
    LabelStudy,
    LabelStudyRun,
    _charged,
    chosen_arms,
    num_patients,
    numbers_of_patients,
)

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


def untimed(results: list[dict]) -> list[dict]:
    times = ("processor_seconds", "elapsed_seconds", "pretraining")
    return [{key: value for key, value in result.items() if key not in times} for result in results]


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
    before_it_is_needed = [*tuned[:2], ("pretrain", None, None, 0, None, 7), *tuned[2:]]
    assert logged(tmp_path) == before_it_is_needed


def test_what_has_a_result_is_not_run_again(study, tmp_path: Path) -> None:
    first = study().run()
    before = logged(tmp_path)
    (tmp_path / "study" / "runs" / LabelStudyRun("scratch", 3, 1).name / "result.json").unlink()
    assert untimed(study().run()) == untimed(first)
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
    with pytest.raises(ValueError, match="arm both: expected one of weights, pre-training and weights_of, got several"):
        study(arms={"both": {"weights": "model.pt", "pretrain": {}}})


@pytest.mark.parametrize(
    ("arm", "said"),
    [
        ({"weights_of": "nobody"}, "weights_of must be one of it; got 'nobody'"),
        ({"pretrain": {}, "each": "patient"}, "each must be study, seed or run; got 'patient'"),
        ({"pretrain": {}, "copies": 4}, "copies of a run's labelled volumes need pretrain, and each: run"),
    ],
)
def test_an_arm_that_contradicts_itself_is_refused_by_name(study, arm: dict, said: str) -> None:
    with pytest.raises(ValueError, match=f"arm it: {said}"):
        study(arms={"it": arm})


@pytest.mark.parametrize(("each", "seeds"), [("study", [0]), ("seed", [8, 9]), ("run", [8, 8, 9, 9])])
def test_a_pretraining_is_made_once_for_the_study_the_seed_or_the_run(study, tmp_path: Path, each, seeds) -> None:
    study(arms={"it": {"pretrain": {"shift": 7}, "each": each}}, seeds=[8, 9]).run()
    assert [seed for stage, *_, seed, _, _ in logged(tmp_path) if stage == "pretrain"] == seeds
    starts = [weights for stage, weights, *_ in logged(tmp_path) if stage == "finetune"]
    assert len(starts) == 4 and len(set(starts)) == len(seeds)


def test_an_arm_can_take_the_weights_of_another(study, tmp_path: Path) -> None:
    arms = {"both": {"weights_of": "synthetic", "finetune": {"shift": 3}}, "synthetic": {"pretrain": {"shift": 7}}}
    results = study(arms=arms, labelled=[2], seeds=[4]).run()
    done = logged(tmp_path)
    assert [line[0] for line in done] == ["pretrain", *["finetune", "evaluate"] * 2]
    assert {line[1] for line in done[1:]} == {
        str(tmp_path / "study" / "pretrained" / "synthetic" / "models" / "model.pt")
    }
    assert [result["settings"]["pretrained_sha256"] for result in results] == [
        results[0]["settings"]["pretrained_sha256"]
    ] * 2


def test_results_so_far_are_reported_after_every_run_that_was_made(study) -> None:
    seen: list[int] = []
    study().run(lambda results: seen.append(len(results)))
    assert seen == list(range(1, 9))
    study().run(lambda results: seen.append(len(results)))
    assert len(seen) == 8, "nothing was made"


def test_whole_seeds_are_done_one_after_another(study, tmp_path: Path) -> None:
    study().run()
    assert [seed for stage, _, _, seed, _, _ in logged(tmp_path) if stage == "finetune"] == [0] * 4 + [1] * 4


def test_a_result_says_what_it_cost_with_attempts_that_were_interrupted(study, tmp_path: Path) -> None:
    run = LabelStudyRun("synthetic", 3, 1)
    attempt = tmp_path / "study" / "runs" / run.name / "cost.json"
    attempt.parent.mkdir(parents=True)
    attempt.write_text(json.dumps({"processor_seconds": 1000.0, "elapsed_seconds": 2000.0}))
    costs = {(r["arm"], r["num_labelled"], r["seed"]): r for r in study().run()}
    assert 1000 < costs[run]["processor_seconds"] < 1100 and 2000 < costs[run]["elapsed_seconds"] < 2100
    assert 0 < costs[run]["pretraining"]["processor_seconds"] < 100
    free = {"processor_seconds": 0.0, "elapsed_seconds": 0.0, "killed_attempts": 0}
    assert costs["scratch", 3, 1]["pretraining"] == free


def test_attempts_that_the_system_killed_are_counted(tmp_path: Path) -> None:
    """What they cost is not known, so only the time of the others can be said."""

    def attempt(ends: bool) -> dict[str, float]:
        process = os.fork()
        if process == 0:
            with _charged(tmp_path):
                if not ends:
                    os._exit(9)  # nothing that stands at the end of the block is done
            os._exit(0)
        os.waitpid(process, 0)
        return json.loads((tmp_path / "cost.json").read_text())

    assert [attempt(ends)["killed_attempts"] for ends in (True, False, False, True)] == [0, 1, 2, 2]
    with pytest.raises(KeyboardInterrupt), _charged(tmp_path):
        raise KeyboardInterrupt
    assert json.loads((tmp_path / "cost.json").read_text())["killed_attempts"] == 2


def test_arms_without_their_folder_are_left_out_unless_asked_for() -> None:
    arms = {"scratch": None, "pairs": {"finetune": {"pairs_dir": None}}, "own": {"pretrain": {"dataset_dir": "there"}}}
    assert chosen_arms(arms) == {"scratch": {}, "own": {"pretrain": {"dataset_dir": "there"}}}
    assert list(chosen_arms(arms, ["own"])) == ["own"]
    with pytest.raises(ValueError, match="arm pairs was asked for, but no pairs_dir was given"):
        chosen_arms(arms, ["scratch", "pairs"])
    with pytest.raises(ValueError, match="some of scratch, pairs, own; got other"):
        chosen_arms(arms, ["other"])


def test_numbers_of_patients_are_as_given_or_by_percentages() -> None:
    assert numbers_of_patients([8, 2, "all", 4], [50], 46) == [2, 4, 8, 46]
    assert numbers_of_patients(None, [50], 46) == [23]


@pytest.mark.parametrize("labelled", [[], [0], [47], ["most"], [2.5], [True]])
def test_numbers_of_patients_that_are_none_are_refused(labelled: list) -> None:
    with pytest.raises(ValueError, match="numbers of patients from 1 to 46, or all"):
        numbers_of_patients(labelled, [50], 46)


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
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(python, "-c", PROCESS, json.dumps(options)) for _ in range(2)]
    assert [process.result().stdout.split()[-1:] for process in both] == [["12"], ["12"]], both[0].result().stderr
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
