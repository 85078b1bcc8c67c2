"""The numbers of an evaluation in a bundle's metadata."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import pytest

from medical_diffusion_components.evaluation import record_audit, record_eval_metrics

TEXT = """{
  "name": "some \\"eval_metrics\\": text",
  "sizes": [1, 2,   3],
  "eval_metrics": {},
  "references": ["eval_metrics"]
}
"""
CELL = {"value": 0.25, "se": 0.5, "floor": -0.125, "floor_sd": 0.75, "floor_n": 4, "n": 8, "m": 9, "better": "lower"}
ROW = {
    "slices_xy": {"kid": CELL, "fd": {**CELL, "value": 99.0}},
    "slices_lite0": {"kid": {**CELL, "value": 77.0}},
    "volumes": {"ms_ssim": {**CELL, "value": 0.5, "real": 0.625}},
}


class Files(NamedTuple):
    metadata: Path
    evaluation: Path
    weights: Path

    def evaluated(self, **changes: object) -> Files:
        report = json.loads(self.evaluation.read_text()) | changes
        self.evaluation.write_text(json.dumps(report))
        return self


@pytest.fixture
def files(tmp_path: Path) -> Files:
    found = Files(*(tmp_path / name for name in ("metadata.json", "evaluation.json", "model.pt")))
    found.metadata.write_text(TEXT)
    found.weights.write_bytes(b"weights")
    report = {
        "protocol": "1",
        "samples": "generated",
        "reference": "test",
        "weights_sha256": hashlib.sha256(b"weights").hexdigest(),
        "data": {"data": "embedded template cohort", "notice": "no patients", "cases": {}},
        "trained_on_these": True,
        "sampler": "ddim",
        "steps": 20,
        "n": {"synthetic": 8, "reference": 9, "training": 10},
        "metrics": {"psnr": 30.0, "ssim": 0.75},
        "spaces": {"slices_xy": {"counts": True}, "slices_lite0": {"counts": False}},
        "rows": {"synthetic": ROW, "training": copy.deepcopy(ROW)},
    }
    found.evaluation.write_text(json.dumps(report))
    return found


def test_the_numbers_are_those_of_the_evaluation_with_errors_and_floors(files: Files) -> None:
    record_eval_metrics(*files)
    found = json.loads(files.metadata.read_text())["eval_metrics"]
    assert found["weights_sha256"] == hashlib.sha256(b"weights").hexdigest()
    assert (found["data"], found["synthetic_volumes"], found["held_out_volumes"]) == ("embedded template cohort", 8, 9)
    assert found["first_stage"] == {"psnr": 30.0, "ssim": 0.75}
    assert found["slices_xy"] == {
        "kid": {key: CELL[key] for key in ("value", "se", "floor", "floor_sd", "floor_n", "n")}
    }
    assert (found["volumes"]["ms_ssim"]["value"], found["volumes"]["ms_ssim"]["real"]) == (0.5, 0.625)
    assert "slices_lite0" not in found, "it is there for comparison alone"


def test_nothing_else_in_the_metadata_changes(files: Files) -> None:
    before, after = TEXT.split("{}")
    record_eval_metrics(*files)
    once = files.metadata.read_text()
    assert once.startswith(before) and once.endswith(after)
    record_eval_metrics(*files)
    assert files.metadata.read_text() == once, "recorded again"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights_sha256": "0" * 64}, "evaluate again"),
        ({"weights_sha256": None}, "evaluate again"),
        ({"samples": "a folder"}, "of a folder"),
        ({"reference": "training"}, "is one with training"),
        ({"trained_on_these": False}, "weights were not trained on"),
        ({"trained_on_these": None}, "weights were not trained on"),  # nobody knows
    ],
)
def test_numbers_that_are_not_of_these_weights_are_refused(files: Files, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        record_eval_metrics(*files.evaluated(**changes))
    assert files.metadata.read_text() == TEXT


@pytest.mark.parametrize("name", ["evaluation", "weights"])
def test_what_is_not_there_is_named(files: Files, name: str) -> None:
    path = getattr(files, name)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=path.name):
        record_eval_metrics(*files)


AUDIT = {name: {"the": name} for name in ("volumes", "flagged", "membership", "holdout_share", "published_rule")}
AUDIT |= {"protocol": "copy-audit-v2", "data_copying_z": -0.5, "samples_sha256": ["of a volume"]}


def audited(files: Files, **changes: object) -> Files:
    facts = {"weights_sha256": hashlib.sha256(b"weights").hexdigest(), "trained_on_these": True, "alpha": 0.05}
    facts |= {"training_volumes": 10, "held_out_patients": 40} | changes
    path = files.evaluation.with_name("audit.json")
    path.write_text(json.dumps(AUDIT | {"facts": facts}))
    return files._replace(evaluation=path)


def test_an_audit_stands_beside_the_evaluation_of_the_same_weights_and_outlives_another_one(files: Files) -> None:
    record_eval_metrics(*files)
    measured = json.loads(files.metadata.read_text())["eval_metrics"]
    record_audit(*audited(files))
    found = json.loads(files.metadata.read_text())["eval_metrics"]
    audit = found.pop("audit")
    assert found == measured
    assert audit.pop("alpha") == 0.05 and (audit.pop("training_volumes"), audit.pop("held_out_patients")) == (10, 40)
    assert audit == {name: AUDIT[name] for name in AUDIT if name != "samples_sha256"}
    text = files.metadata.read_text()
    record_eval_metrics(*files)
    assert files.metadata.read_text() == text, "evaluated again"
    files.weights.write_bytes(b"others")
    record_eval_metrics(*files.evaluated(weights_sha256=hashlib.sha256(b"others").hexdigest()))
    assert "audit" not in json.loads(files.metadata.read_text())["eval_metrics"], "it was of other weights"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights_sha256": "0" * 64}, "audit again"),
        ({"trained_on_these": False}, "no note says that the weights were trained on them"),
    ],
)
def test_an_audit_that_is_not_of_these_weights_is_refused(files: Files, changes: dict, message: str) -> None:
    record_eval_metrics(*files)
    before = files.metadata.read_text()
    with pytest.raises(ValueError, match=message):
        record_audit(*audited(files, **changes))
    assert files.metadata.read_text() == before


def test_an_audit_without_an_evaluation_is_refused(files: Files) -> None:
    with pytest.raises(ValueError, match="record an evaluation of these weights first"):
        record_audit(*audited(files))
    assert files.metadata.read_text() == TEXT
