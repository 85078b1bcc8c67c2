"""The paper's second half as one command: pre-train on volumes without labels, fine-tune on few with, compare."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from bundle_folders import REPOSITORY, Trained, last_line, run, tiny, tree

from medical_diffusion_components.weights import provenance

BUNDLE = REPOSITORY / "bundles" / "swin_unetr_finetune"
PRETRAINING = REPOSITORY / "bundles" / "swin_unetr_pretrain"


@pytest.fixture
def cohort(trained: Callable[[Path], Trained]) -> Path:
    return next(trained(BUNDLE).output.glob("*/dataset.json")).parent


@pytest.mark.slow
def test_one_command_compares_the_arms_and_repeats_nothing(cohort: Path, tmp_path: Path) -> None:
    few = {id: value for id, value in tiny(PRETRAINING).items() if id in ("epochs", "roi_size")}
    pretrain = {"dataset_dir": str(cohort / "images"), "num_training_volumes": 2, **few}
    settings = tiny(
        BUNDLE,
        dataset_dir=str(cohort),
        synthetic_dir=str(cohort / "images"),
        output_dir=str(tmp_path),
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


def test_without_synthetic_volumes_the_study_says_what_it_needs(cohort: Path, tmp_path: Path) -> None:
    found = last_line(BUNDLE, "label_study.yaml", **tiny(BUNDLE, dataset_dir=str(cohort), output_dir=str(tmp_path)))
    assert "synthetic_dir" in found and "inference.json" in found
