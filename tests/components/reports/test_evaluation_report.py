from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from PIL import Image
from torch import nn

from medical_diffusion_components.diffusion.noise_latent import NoiseLatent
from medical_diffusion_components.reports import evaluation_report, montages
from medical_diffusion_components.reports.evaluation_report import EvaluationReport

BATCHES = [0, 2, 4]  # numbers of the first volume of each batch of two


def evaluator() -> Engine:
    """Three batches of two volumes; volume n holds n, its reconstruction n + 0.5."""

    def evaluate(engine: Engine, first: int) -> dict:
        image = torch.tensor([first, first + 1.0]).reshape(2, 1, 1, 1, 1).expand(2, 1, 4, 6, 8)
        return {"image": image, "pred": image + 0.5}

    engine = Engine(evaluate)
    engine.state.device = torch.device("cpu")
    return engine


def drawn_groups(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    drawn: list[dict] = []
    monkeypatch.setattr(montages, "montage", lambda groups, *_, **__: drawn.append(dict(groups)))
    monkeypatch.setattr(evaluation_report, "save_montage", lambda *_: None)
    return drawn


def test_only_the_volumes_that_are_shown_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, engine = drawn_groups(monkeypatch), evaluator()
    report = EvaluationReport(tmp_path, {}, num_volumes=3)
    report.attach(engine)
    engine.run(BATCHES)
    (groups,) = drawn
    values = {heading: [float(volume.flat[0]) for volume in volumes] for heading, volumes in groups.items()}
    assert list(values.values()) == [[0.0, 1.0, 2.0], [0.5, 1.5, 2.5]]
    assert [len(volumes) for volumes in report.pictures.volumes.values()] == [3, 3]


def test_samples_stand_above_and_start_from_the_noise_of_the_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, engine = drawn_groups(monkeypatch), evaluator()
    EvaluationReport(tmp_path, {}, nn.Identity(), (1, 4, 6, 8), num_volumes=2, seed=7).attach(engine)
    engine.run(BATCHES)
    heading, samples = next(iter(drawn[0].items()))
    assert heading == "synthetic volumes" and len(samples) == 2
    for number, sample in enumerate(samples):
        assert np.array_equal(sample, NoiseLatent((1, 4, 6, 8), seed=7)(number)[0].numpy())


def test_metrics_and_facts_are_written_and_what_is_no_number_is_null(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    engine = evaluator()
    EvaluationReport(tmp_path, {"data": "abc"}, name="first_stage.json").attach(engine)
    engine.state.metrics = {"ssim": 0.123456789, "psnr": float("nan")}
    engine.run(BATCHES)
    written = json.loads((tmp_path / "first_stage.json").read_text())
    assert written["metrics"]["ssim"] == 0.12346 and written["metrics"]["psnr"] is None
    assert written["data"] == "abc" and written["versions"]["torch"] == torch.__version__
    assert Image.open(tmp_path / "first_stage.png").size[0] > 0
    assert "test split: ssim 0.1235" in capsys.readouterr().out
