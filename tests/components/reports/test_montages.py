from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from ignite.engine import Engine, Events
from PIL import Image
from torch import nn

from medical_diffusion_components.diffusion.noise_latent import NoiseLatent
from medical_diffusion_components.reports import montages
from medical_diffusion_components.reports.montages import ReconstructionMontage, SampleMontage


def engine(rank: int = 0) -> Engine:
    made = Engine(lambda *_: {"image": torch.zeros(2, 1, 4, 6, 8), "pred": torch.ones(2, 1, 4, 6, 8)})
    made.state.rank, made.state.device = rank, torch.device("cpu")
    return made


def sampled_epochs(folder: Path, epochs: int, every: int, rank: int = 0) -> list[int]:
    shown = []
    writer = SimpleNamespace(add_figure=lambda name, figure, epoch: shown.append(epoch))
    trainer = engine(rank)
    SampleMontage(nn.Identity(), (1, 4, 6, 8), folder, writer, every_epochs=every, num_volumes=1).attach(trainer)
    trainer.run([0], max_epochs=epochs)
    assert [path.name for path in sorted(folder.glob("*.png"))] == [f"samples_{epoch:05d}.png" for epoch in shown]
    return shown


def test_samples_are_drawn_every_so_often_and_at_the_end(tmp_path: Path) -> None:
    assert sampled_epochs(tmp_path / "a", epochs=5, every=2) == [2, 4, 5]
    assert sampled_epochs(tmp_path / "b", epochs=2, every=2) == [2]
    assert sampled_epochs(tmp_path / "c", epochs=1, every=50) == [1]


def test_other_ranks_draw_nothing(tmp_path: Path) -> None:
    assert sampled_epochs(tmp_path, epochs=2, every=1, rank=1) == []


def test_every_montage_of_samples_starts_from_the_same_noise(tmp_path: Path, monkeypatch) -> None:
    drawn = []
    monkeypatch.setattr(montages, "montage", lambda groups, *_, **__: drawn.append(groups["synthetic volumes"]))
    monkeypatch.setattr(montages, "save_montage", lambda *_: None)
    writer = SimpleNamespace(add_figure=lambda *_: None)
    generator, trainer = nn.Identity(), engine()
    SampleMontage(generator, (1, 4, 6, 8), tmp_path, writer, every_epochs=1, num_volumes=3, seed=7).attach(trainer)
    trainer.run([0], max_epochs=2)
    expected = [NoiseLatent((1, 4, 6, 8), seed=7)(number)[0].numpy() for number in range(3)]
    for volumes in drawn:
        assert len(volumes) == 3
        assert all(np.array_equal(one, other) for one, other in zip(volumes, expected))


def test_a_montage_of_reconstructions_holds_the_first_volumes_of_each_validation(tmp_path: Path, monkeypatch) -> None:
    seen = []
    draw = montages.montage

    def look(groups: dict, *options: object, **named: object) -> object:
        seen.append({name: len(volumes) for name, volumes in groups.items()})
        return draw(groups, *options, **named)

    monkeypatch.setattr(montages, "montage", look)
    evaluator = engine()
    writer = SimpleNamespace(add_figure=lambda *_: None)
    ReconstructionMontage(tmp_path, writer, num_volumes=3).attach(evaluator)
    evaluator.add_event_handler(Events.EPOCH_COMPLETED, lambda _: None)
    evaluator.run([0] * 4, max_epochs=2)
    assert seen == [{"held-out volumes": 3, "their reconstructions": 3}] * 2
    assert np.asarray(Image.open(tmp_path / "reconstruction_00002.png").convert("L")).std() > 10


def test_a_montage_of_reconstructions_shows_the_rows_it_is_told_to(tmp_path: Path, monkeypatch) -> None:
    drawn = []
    monkeypatch.setattr(montages, "montage", lambda groups, *_, **__: drawn.append(groups))
    monkeypatch.setattr(montages, "save_montage", lambda *_: None)
    evaluator = engine()
    rows = {"masked": "image", "painted": "pred", "true": "image"}
    ReconstructionMontage(tmp_path, SimpleNamespace(add_figure=lambda *_: None), rows=rows).attach(evaluator)
    evaluator.run([0])
    assert {heading: float(group[0].mean()) for heading, group in drawn[0].items()} == {
        "masked": 0,
        "painted": 1,
        "true": 0,
    }
