"""The paper's second half as one command: pre-train on volumes without labels, fine-tune on few with, compare."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from bundle_folders import REPOSITORY, Trained, last_line, run, tiny, tree, undisturbed, workflow

from medical_diffusion_components.weights import provenance

BUNDLE = REPOSITORY / "bundles" / "swin_unetr_finetune"
PRETRAINING = REPOSITORY / "bundles" / "swin_unetr_pretrain"


@pytest.fixture
def cohort(trained: Callable[[Path], Trained]) -> Path:
    return next(trained(BUNDLE).output.glob("*/dataset.json")).parent


def rows_by_arm(study: Path) -> dict[str, dict[str, str]]:
    with open(study / "label_study.csv") as file:
        return {row["arm"]: row for row in csv.DictReader(file)}


@pytest.mark.slow
def test_one_command_compares_the_arms_and_repeats_nothing(cohort: Path, tmp_path: Path) -> None:
    few = {id: value for id, value in tiny(PRETRAINING).items() if id in ("epochs", "roi_size")}
    pretrain = {"dataset_dir": str(cohort / "images"), "num_training_volumes": 2, **few}
    settings = tiny(
        BUNDLE,
        dataset_dir=str(cohort),
        synthetic_dir=str(cohort / "images"),
        output_dir=str(tmp_path),
        num_shown=1,
        percentages=[30, 100],
        seeds=[4],
        arms={"scratch": {}, "synthetic": {"pretrain": pretrain}},
    )
    printed = run(BUNDLE, "label_study.yaml", **settings)
    study = tmp_path / "label_study"
    with open(study / "label_study.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["arm"] for row in rows] == ["scratch", "synthetic"] * 2
    assert int(rows[0]["labelled"]) < int(rows[-1]["labelled"])
    assert (study / "label_study.md").read_text() in printed and (study / "label_study.png").is_file()
    note = {
        arm: provenance(study / "runs" / f"{arm}_000{rows[0]['labelled']}_4" / "models" / "model.pt")
        for arm in ("scratch", "synthetic")
    }
    assert note["scratch"]["pretrained"] is None
    pretrained = json.loads((study / "pretrained" / "synthetic" / "models" / "model.json").read_text())
    assert note["synthetic"]["pretrained"] == pretrained["sha256"]
    assert note["scratch"]["data_sha256"] == note["synthetic"]["data_sha256"], "the same patients"
    assert note["scratch"]["patients"] == int(rows[0]["labelled"])
    before = tree(study)
    assert run(BUNDLE, "label_study.yaml", **settings).endswith(printed[-200:])
    assert {name: content for name, content in tree(study).items() if not name.endswith(".png")} == {
        name: content for name, content in before.items() if not name.endswith(".png")
    }


@pytest.mark.slow
def test_every_arm_of_the_protocol_runs(cohort: Path, tmp_path: Path) -> None:
    pairs = json.loads((cohort / "dataset.json").read_text())
    listed = {
        split: [
            {
                **case,
                **{key: str(cohort / case[key]) for key in ("image", "label")},
                "case_id": f"pair_{case['case_id']}",
            }
            for case in pairs[split]
        ]
        for split in ("training", "validation", "test")
    }
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "dataset.json").write_text(json.dumps(listed))
    settings = tiny(
        BUNDLE,
        dataset_dir=str(cohort),
        synthetic_dir=str(cohort / "images"),
        unlabelled_dir=str(cohort),
        pairs_dir=str(tmp_path / "pairs"),
        output_dir=str(tmp_path),
        labelled=[2],
        num_shown=1,
        num_pretraining=2,
        pretraining_batches=2,
        sizes={"roi_size": [64, 32, 32]},
    )
    run(BUNDLE, "label_study.yaml", **settings, seeds=[0])
    study = tmp_path / "label_study"
    rows = rows_by_arm(study)
    assert list(rows) == ["scratch", "synthetic", "real", "own", "copies", "pairs", "both"]
    assert {row["seeds"] for row in rows.values()} == {"1"}
    made = {path.parent.name for path in study.glob("pretrained/*/done.json")}
    assert made == {"synthetic", "real", "own", "copies_0002_0"}
    note = {arm: provenance(study / "runs" / f"{arm}_0002_0" / "models" / "model.pt") for arm in rows}
    assert note["both"]["pretrained"] == note["synthetic"]["pretrained"] is not None
    assert note["pairs"]["pretrained"] is note["scratch"]["pretrained"] is None
    trained = {arm: note[arm]["cases"]["training"] for arm in rows}
    assert trained["pairs"] == trained["both"] > trained["scratch"] == trained["copies"]

    before = tree(study / "runs")
    some = ["scratch", "synthetic", "copies"]
    run(BUNDLE, "label_study.yaml", **settings, seeds=[0, 1], only=some)
    text = (study / "label_study.md").read_text()
    assert text.startswith("**") and "2 of 2 seeds" not in text.split(":")[0]
    assert {arm: row["seeds"] for arm, row in rows_by_arm(study).items()} == dict.fromkeys(some, "2")
    made |= {"copies_0002_1"}
    assert {path.parent.name for path in study.glob("pretrained/*/done.json")} == made
    assert before.items() <= tree(study / "runs").items(), "the first seed is not run again"


def test_a_scale_gives_every_arm_the_same_number_of_batches(cohort: Path, tmp_path: Path) -> None:
    """Pre-training and fine-tuning together are as many batches as those of an arm without a pre-training."""
    with undisturbed():
        started = workflow(
            BUNDLE,
            "label_study.yaml",
            scale="small",
            dataset_dir=str(cohort),
            synthetic_dir=str(cohort / "images"),
            output_dir=str(tmp_path),
            synthetic_on_grid=str(cohort),
            real_on_grid=str(cohort),
            num_pretraining=77,
            labelled=[1],
            bundle_root=str(BUNDLE),
            pairs_dir=str(cohort),
            changed={"pairs_dir": str(cohort)},  # asks the running workflow, and none is running here
        )
        started.initialize()
        study = started.parser.get_parsed_content("study")
    assert list(study.arms) == ["scratch", "synthetic", "real", "copies", "pairs", "both"], "real is the training split"
    given = {arm: study.arms[arm].finetune.get("pairs_dir", study.settings["pairs_dir"]) for arm in study.arms}
    assert given == {**dict.fromkeys(study.arms), "pairs": str(cohort), "both": str(cohort)}
    tuning = study.settings["iterations_per_epoch"] * study.settings["epochs"]
    before = study.pretrain_settings["epochs"] * math.ceil(77 / study.pretrain_settings["batch_size"])
    longer = study.settings["iterations_per_epoch"] * study.arms["scratch"].finetune["epochs"]
    assert before > 0 and before + tuning == pytest.approx(longer, rel=0.1)
    assert study.pretrain_settings["roi_size"] == study.settings["roi_size"] == [64, 32, 32]
    assert study.pretrain_settings["feature_size"] == study.settings["feature_size"] == 12
    assert study.pretrain_settings["patience"] is None


def test_without_synthetic_volumes_the_study_says_what_it_needs(cohort: Path, tmp_path: Path) -> None:
    found = last_line(BUNDLE, "label_study.yaml", **tiny(BUNDLE, dataset_dir=str(cohort), output_dir=str(tmp_path)))
    assert "synthetic_dir" in found and "inference.json" in found
