from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from PIL import Image
from scipy.stats import norm

from medical_diffusion_components.reports.segmentation_report import SegmentationReport, mean_over_patients

CLASSES = {"white": 2, "background": 0, "grey": 1}
DICE = [[0.5, 0.75], [0.25, 0.0], [np.nan, 1.0]]
DISTANCE = [[2.0, 1.0], [3.0, np.nan], [np.nan, 0.0]]


@pytest.fixture
def folder(tmp_path: Path, capsys: pytest.CaptureFixture) -> Path:
    """Of an evaluation of three cases of two patients; b's white matter was missed, c's label has no grey matter."""
    volume = torch.zeros(3, 10, 20, 6)
    volume[1, 4:6, 8:12] = 1

    def case(name: str) -> dict:
        return {"case_id": name, "image": torch.rand(1, 10, 20, 6), "pred": volume, "label": volume}

    def evaluate(engine: Engine, names: str) -> list[dict]:
        engine.state.batch = [{"case_id": name} for name in names]
        return [case(name) for name in names]

    engine = Engine(evaluate)
    SegmentationReport(
        tmp_path, CLASSES, ["dice", "surface_distance"], {"weights": "abc"}, {"a": "one", "b": "one", "c": "two"}
    ).attach(engine)
    engine.state.metric_details = {"dice": torch.tensor(DICE), "surface_distance": torch.tensor(DISTANCE)}
    engine.run(["ab", "c"])
    (tmp_path / "printed.txt").write_text(capsys.readouterr().out)
    return tmp_path


def report(folder: Path) -> dict:
    return json.loads((folder / "evaluation.json").read_text())


def test_every_case_and_class_is_reported(folder: Path) -> None:
    cases = report(folder)["cases"]
    assert cases["a"] == {"dice": {"grey": 0.5, "white": 0.75}, "surface_distance": {"grey": 2.0, "white": 1.0}}
    assert cases["b"] == {"dice": {"grey": 0.25, "white": 0.0}, "surface_distance": {"grey": 3.0}}
    assert cases["c"] == {"dice": {"white": 1.0}, "surface_distance": {"white": 0.0}}
    assert report(folder)["patients"] == {"a": "one", "b": "one", "c": "two"}
    assert report(folder)["missed"] == 1 and report(folder)["weights"] == "abc"


def test_means_are_over_patients_and_over_the_classes_of_each_case(folder: Path) -> None:
    dice = report(folder)["metrics"]["dice"]
    assert dice["grey"]["mean"] == pytest.approx((0.5 + 0.25) / 2) and dice["grey"]["patients"] == 1
    assert dice["white"]["mean"] == pytest.approx(((0.75 + 0.0) / 2 + 1.0) / 2)
    assert dice["mean"]["mean"] == pytest.approx(((0.625 + 0.125) / 2 + 1.0) / 2) and dice["mean"]["patients"] == 2
    assert dice["grey"]["low"] is None


def test_classes_that_a_label_does_not_have_are_counted_apart(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Of four cases two are healthy; in one of these the network sees something."""
    lesion = torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1).expand(2, 4, 5, 6)
    healthy = lesion.flip(0)
    pairs = {"a": (lesion, lesion), "b": (healthy, lesion), "c": (lesion, healthy), "d": (healthy, healthy)}

    def evaluate(engine: Engine, names: str) -> list[dict]:
        engine.state.batch = [{"case_id": name} for name in names]
        made = [pairs[name] for name in names]  # prediction, label
        return [{"image": torch.rand(1, 4, 5, 6), "pred": pred, "label": label} for pred, label in made]

    engine = Engine(evaluate)
    SegmentationReport(tmp_path, {"background": 0, "lesion": 1}, ["dice", "surface_distance"], {}).attach(engine)
    nan = torch.nan
    engine.state.metric_details = {
        "dice": torch.tensor([[1.0], [0.0], [nan], [nan]]),
        "surface_distance": torch.tensor([[0.0], [nan], [nan], [nan]]),
    }
    engine.run(["ab", "cd"])
    found = report(tmp_path)
    assert found["absent"] == {name: {"cases": 2, "invented": 1} for name in ("all", "lesion")}
    assert found["metrics"]["dice"]["lesion"]["mean"] == 0.5 and found["metrics"]["dice"]["lesion"]["patients"] == 2
    assert "2 cases have no structure in their label and count in no mean; in 1 of them" in capsys.readouterr().out


def test_the_table_holds_the_same(folder: Path) -> None:
    with open(folder / "evaluation.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    row = next(row for row in rows if (row["case_id"], row["class"]) == ("b", "white"))
    assert row == {"case_id": "b", "patient_id": "one", "class": "white", "dice": "0.0", "surface_distance": ""}


def test_it_is_printed_and_pictured(folder: Path) -> None:
    printed = (folder / "printed.txt").read_text()
    assert "dice: mean 0.6875 (" in printed and "structures missed altogether: 1" in printed
    picture = np.asarray(Image.open(folder / "evaluation.png").convert("RGB")).astype(int)
    assert (np.ptp(picture, axis=-1) > 60).mean() > 0.01, "classes are in colour"


def test_the_interval_is_that_of_the_mean_of_many_patients() -> None:
    values = np.random.default_rng(0).normal(0.7, 0.1, 200)
    found = mean_over_patients(values, [str(n) for n in range(200)])
    half = norm.ppf(0.975) * values.std() / np.sqrt(200)
    assert found.mean == pytest.approx(values.mean()) and found.patients == 200
    np.testing.assert_allclose([found.low, found.high], [values.mean() - half, values.mean() + half], atol=0.2 * half)


def test_cases_of_one_patient_do_not_make_the_interval_narrower() -> None:
    values = np.random.default_rng(0).normal(0.7, 0.1, 20)
    once = mean_over_patients(values, [str(n) for n in range(20)])
    thrice = mean_over_patients(np.repeat(values, 3), np.repeat([str(n) for n in range(20)], 3).tolist())
    np.testing.assert_allclose(thrice[:3], once[:3])


def test_a_mean_is_no_median_within_a_patient_nor_between_patients() -> None:
    found = mean_over_patients([0.0, 0.1, 0.8, 0.9, 0.2], ["a", "a", "a", "b", "c"])
    assert found.mean == pytest.approx(((0.0 + 0.1 + 0.8) / 3 + 0.9 + 0.2) / 3) and found.patients == 3


def test_too_few_patients_have_no_interval_and_none_no_mean() -> None:
    assert mean_over_patients([0.5, np.nan], ["a", "b"]) == (0.5, None, None, 1)
    assert mean_over_patients([np.nan], ["a"]) == (None, None, None, 0)
    assert mean_over_patients([0.5, 0.5], ["a", "b"]) == (0.5, 0.5, 0.5, 2)


def test_cases_of_a_patient_and_classes_of_a_case_enter_with_their_mean(tmp_path: Path) -> None:
    """Three of each, so that a mean is not a median."""
    volume = torch.zeros(4, 10, 20, 6)
    cases = [{"case_id": n, "image": torch.rand(1, 10, 20, 6), "pred": volume, "label": volume} for n in "abcd"]

    def evaluate(engine: Engine, _: int) -> list[dict]:
        engine.state.batch = cases
        return cases

    engine = Engine(evaluate)
    classes = {"background": 0, "grey": 1, "white": 2, "fluid": 3}
    patients = {"a": "one", "b": "one", "c": "one", "d": "two"}
    SegmentationReport(tmp_path, classes, ["dice"], {}, patients).attach(engine)
    dice = torch.tensor([[0.0, 0.3, 0.9], [0.0, 0.3, 0.9], [0.9, 0.3, 0.9], [0.5, 0.5, 0.8]], dtype=torch.float64)
    engine.state.metric_details = {"dice": dice}
    engine.run([0])
    found = {name: value["mean"] for name, value in report(tmp_path)["metrics"]["dice"].items()}
    of_cases = [0.4, 0.4, 0.7, 0.6]
    expected = {"grey": (0.3 + 0.5) / 2, "white": (0.3 + 0.5) / 2, "fluid": (0.9 + 0.8) / 2}
    expected["mean"] = (np.mean(of_cases[:3]) + of_cases[3]) / 2
    assert found == pytest.approx(expected)
