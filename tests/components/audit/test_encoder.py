"""The contrastive encoder: its loss, its views, its cache, and training that can be interrupted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

import medical_diffusion_components.audit.encoder as encoder_module
from medical_diffusion_components.audit import (
    ContrastiveEncoder,
    ContrastiveTraining,
    RandomViews,
    embed,
    nt_xent,
    reduce_volumes,
    reduced_shape,
    trained_encoder,
)

SHAPE = (1, 8, 10, 12)
TRAINING = ContrastiveTraining(steps=120, volumes_per_step=4)


@pytest.fixture
def volumes() -> torch.Tensor:
    return torch.rand(6, *SHAPE) * 2 - 1


def test_loss_is_the_sum_by_hand() -> None:
    one, other = (normalize(torch.randn(3, 4), dim=1) for _ in range(2))
    both, expected = torch.cat([one, other]), 0.0
    for row in range(6):
        scores = torch.stack([both[row] @ both[column] / 0.2 for column in range(6) if column != row])
        expected += float(torch.logsumexp(scores, 0) - both[row] @ both[(row + 3) % 6] / 0.2) / 6
    assert float(nt_xent(one, other, 0.2)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((64, 64, 64), (32, 32, 32)),
        ((256, 256, 32), (64, 64, 16)),
        ((128, 128, 128), (32, 32, 32)),
        ((16, 32, 12), (16, 32, 12)),
    ],
)
def test_few_thick_slices_stay_apart(shape: tuple, expected: tuple) -> None:
    assert reduced_shape(shape) == expected


def test_reduction_averages_blocks() -> None:
    volume = torch.rand(1, 1, 64, 64, 64)
    blocks = volume.reshape(1, 1, 32, 2, 32, 2, 32, 2).mean(dim=(3, 5, 7))
    torch.testing.assert_close(reduce_volumes(volume), blocks)


def test_views_that_may_change_nothing_change_nothing() -> None:
    volume = torch.rand(2, *SHAPE) * 2 - 1
    still = RandomViews(None, rotation=0, scale=0, shift=0, warp=0, gamma=0, blur=0, noise=0)
    view = still(volume, torch.Generator().manual_seed(0))
    centred = volume - volume.mean(dim=(1, 2, 3, 4), keepdim=True)
    torch.testing.assert_close(view, centred / centred.std(dim=(1, 2, 3, 4), keepdim=True), atol=1e-3, rtol=0)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_half_of_the_views_are_mirrored_along_the_axis_of_the_generators_training(axis: int) -> None:
    volume = torch.rand(1, *SHAPE).expand(200, -1, -1, -1, -1)
    still = RandomViews(axis, rotation=0, scale=0, shift=0, warp=0, gamma=0, blur=0, noise=0)
    views = still(volume, torch.Generator().manual_seed(0))
    plain = RandomViews(None, 0, 0, 0, 0, 0, 0, 0)(volume, torch.Generator().manual_seed(0))
    same = (views - plain).abs().flatten(1).amax(1) < 1e-3
    mirrored = (views - plain.flip(2 + axis)).abs().flatten(1).amax(1) < 1e-3
    assert (same ^ mirrored).all() and 0.35 < mirrored.float().mean() < 0.65


@pytest.mark.parametrize("change", ["rotation", "scale", "shift", "warp", "gamma", "blur", "noise"])
def test_every_kind_of_view_changes_the_volume(change: str) -> None:
    none = dict.fromkeys(("rotation", "scale", "shift", "warp", "gamma", "blur", "noise"), 0.0)
    volume = torch.rand(20, *SHAPE) * 2 - 1
    still = RandomViews(None, **none)(volume, torch.Generator().manual_seed(0))
    moved = RandomViews(None, **{**none, change: 0.3})(volume, torch.Generator().manual_seed(0))
    changed = ((moved - still).abs().flatten(1).amax(1) > 0.005).float().mean()
    assert 0.1 < changed < 0.6 if change == "blur" else changed > 0.9  # 0.3 is the blur's probability


def test_each_step_follows_its_own_gradient_alone(
    volumes: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []

    def flat_after_the_first(*arguments):
        steps.append(1)
        return nt_xent(*arguments) * (len(steps) == 1)

    monkeypatch.setattr(encoder_module, "nt_xent", flat_after_the_first)
    encoder, _ = trained_encoder(volumes, {}, tmp_path, RandomViews(), TRAINING._replace(steps=3))
    assert not any(parameter.grad.any() for parameter in encoder.parameters())


@pytest.mark.slow
def test_interrupted_training_ends_as_it_would_have(
    volumes: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = trained_encoder(volumes, {}, tmp_path / "whole", RandomViews(), TRAINING)
    calls = []

    def interrupt(*arguments):
        calls.append(1)
        if len(calls) > 90:
            raise KeyboardInterrupt
        return nt_xent(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(encoder_module, "nt_xent", interrupt)
        trained_encoder(volumes, {}, tmp_path / "cut", RandomViews(), TRAINING)
    assert [file.name.split(".", 1)[1] for file in (tmp_path / "cut").iterdir()] == ["unfinished.pt"]
    calls.clear()
    monkeypatch.setattr(encoder_module, "nt_xent", lambda *arguments: calls.append(1) or nt_xent(*arguments))
    resumed, _ = trained_encoder(volumes, {}, tmp_path / "cut", RandomViews(), TRAINING)
    assert len(calls) == 70, "from step 50 on"
    for one, other in zip(whole.state_dict().values(), resumed.state_dict().values()):
        assert torch.equal(one, other)
    assert len(list((tmp_path / "cut").iterdir())) == 1


def test_a_trained_encoder_is_not_trained_again(
    volumes: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, key = trained_encoder(volumes, {"data": 1}, tmp_path, RandomViews(), TRAINING._replace(steps=3))
    monkeypatch.setattr(encoder_module, "nt_xent", None)
    again, same = trained_encoder(volumes, {"data": 1}, tmp_path, RandomViews(), TRAINING._replace(steps=3))
    assert key == same and torch.equal(embed(first, volumes), embed(again, volumes))
    with pytest.raises(TypeError):  # other data: trained, which was made impossible
        trained_encoder(volumes, {"data": 2}, tmp_path, RandomViews(), TRAINING._replace(steps=3))


def test_points_have_length_one_and_do_not_depend_on_the_batch(volumes: torch.Tensor, tmp_path: Path) -> None:
    network, _ = trained_encoder(volumes, {}, tmp_path, RandomViews(), TRAINING._replace(steps=2))
    points = embed(network, volumes)
    torch.testing.assert_close(points.norm(dim=1), torch.ones(6))
    torch.testing.assert_close(points, embed(network, volumes, batch_size=1), atol=1e-5, rtol=0)


def test_training_brings_two_views_of_a_volume_together(volumes: torch.Tensor, tmp_path: Path) -> None:
    views, generator = RandomViews(), torch.Generator().manual_seed(1)
    network, _ = trained_encoder(volumes, {}, tmp_path, views, TRAINING._replace(steps=40))
    one, other = views(volumes, generator), views(volumes, generator)
    trained, fresh = (float(nt_xent(some(one), some(other), 0.1)) for some in (network, ContrastiveEncoder(SHAPE)))
    assert trained < 0.7 * fresh and not network.training


def test_one_volume_is_too_few(volumes: torch.Tensor, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two or more training volumes"):
        trained_encoder(volumes[:1], {}, tmp_path, RandomViews(), TRAINING)


def test_views_show_volumes_as_they_are_and_through_the_first_stage(
    volumes: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = []

    def views(batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        shown.append(batch)
        return batch

    monkeypatch.setattr(encoder_module, "vars", lambda _: {}, raising=False)
    training, through = TRAINING._replace(steps=30), volumes - 5
    trained_encoder(volumes, {}, tmp_path, views, training, through=through)
    assert len(shown) == 60, "two views of each step"
    place = {tuple(one.flatten().tolist()): number for number, one in enumerate(torch.cat([volumes, through]))}
    seen = torch.tensor([[place[tuple(one.flatten().tolist())] for one in batch] for batch in shown])
    assert torch.equal(seen[0::2] % 6, seen[1::2] % 6), "both views of a pair are of one volume"
    assert 0.4 < (seen >= 6).float().mean() < 0.6
    mixed = ((seen[0::2] >= 6) != (seen[1::2] >= 6)).float().mean()
    assert 0.3 < mixed < 0.7, "the encoder learns that one version is the other"


def test_a_first_stage_makes_another_encoder(volumes: torch.Tensor, tmp_path: Path) -> None:
    keys = [
        trained_encoder(volumes, {}, tmp_path, RandomViews(), TRAINING._replace(steps=2), through=through)[1]
        for through in (None, volumes)
    ]
    assert keys[0] != keys[1]
    with pytest.raises(ValueError, match=r"through the first stage of the shape \(6, .* got \(5, "):
        trained_encoder(volumes, {}, tmp_path, RandomViews(), TRAINING, through=volumes[1:])
