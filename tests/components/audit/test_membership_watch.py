"""A training ends when the denoiser knows its training volumes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events

from medical_diffusion_components.audit import MembershipWatch, membership_watch
from medical_diffusion_components.audit.membership import area_under_curve, denoising_losses, membership_scores
from medical_diffusion_components.chance import normal_of_seed
from medical_diffusion_components.diffusion import LatentDiffusionGenerator, noise_scheduler
from medical_diffusion_components.handlers import StopWhenConverged
from medical_diffusion_components.networks import VQGAN, EMACodebook

COUNT, SHAPE = 30, (2, 4, 4, 4)


class Rote(torch.nn.Module):
    """Answers with the nearest of the latents that it has learned, or, before that, with nothing."""

    def __init__(self, known: torch.Tensor) -> None:
        super().__init__()
        self.known, self.has_learned = known, False

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        if not self.has_learned:
            return torch.zeros_like(x)
        distance = (x.flatten(1)[:, None] - self.known.flatten(1)[None]).square().sum(2)
        return self.known[distance.argmin(1)]


@pytest.fixture
def bed(tmp_path: Path) -> tuple[LatentDiffusionGenerator, list[dict], list[dict]]:
    rng = np.random.default_rng(0)
    entries = []
    for number in range(2 * COUNT):
        file = tmp_path / f"{number}.npy"
        plain = rng.uniform(-1, 1, SHAPE).astype(np.float32)
        np.save(file, np.stack([plain, np.full(SHAPE, 9.0, np.float32)]))  # what stands second must not count
        entries.append({"image": str(file), "case_id": str(number), "patient_id": str(number)})
    training = entries[:COUNT]
    known = torch.stack([torch.from_numpy(np.load(entry["image"])[0]) for entry in training])
    first_stage = VQGAN(base_channels=4, compression=(2, 2, 2), norm_groups=2, codebook=EMACodebook(8, 2))
    scheduler = noise_scheduler(100, "sample")
    generator = LatentDiffusionGenerator(first_stage, Rote(known), scheduler, "ddim", 2, SHAPE)
    generator.denoiser.known = generator.latent_scaling(known)
    return generator, training, entries[COUNT:]


def train(
    watch: MembershipWatch, learn_in: int, epochs: int = 5, metric: str = "membership_auc"
) -> tuple[int, list[float]]:
    """Last epoch, and the metric of each validation."""
    trainer, evaluator, areas = Engine(lambda *_: None), Engine(lambda *_: None), []
    watch.attach(evaluator)
    evaluator.add_event_handler(Events.EPOCH_COMPLETED, lambda e: areas.append(e.state.metrics.get(metric)))

    @trainer.on(Events.EPOCH_COMPLETED)
    def validate(engine: Engine) -> None:
        watch.generator.denoiser.has_learned = engine.state.epoch >= learn_in
        evaluator.run([0], 1)

    StopWhenConverged(watch).attach(trainer)
    trainer.run([0], epochs)
    return trainer.state.epoch, areas


def test_training_ends_when_training_volumes_are_known_and_not_before(bed: tuple) -> None:
    last, areas = train(MembershipWatch(*bed, stop_at=0.9), learn_in=3)
    assert last == 3 and areas[-1] > 0.9
    assert max(areas[:-1]) < 0.8


class AskedFor(torch.nn.Module):
    """Answers with one of the latents by number, which is its only condition, once it has learned."""

    def __init__(self, known: torch.Tensor) -> None:
        super().__init__()
        self.known, self.has_learned, self.asked = known, False, []

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        self.asked += context[:, 0].tolist()
        return self.known[context[:, 0].long()] if self.has_learned else torch.zeros_like(x)


def test_each_latent_is_denoised_under_its_conditions_and_samples_ask_for_those_of_both_sides(bed: tuple) -> None:
    generator, training, held_out = bed
    for number, entry in enumerate(training + held_out):
        entry["conditions"] = torch.tensor([float(number)])
    known = torch.stack([torch.from_numpy(np.load(entry["image"])[0]) for entry in training])
    wrong = known.roll(1, 0)  # held-out volumes get an answer, too, but not theirs
    generator.denoiser = AskedFor(generator.latent_scaling(torch.cat([known, wrong])))
    watch = MembershipWatch(generator, training, held_out, stop_at=0.9, num_samples=8)
    _, areas = train(watch, learn_in=2)
    assert areas[0] < 0.8 and areas[1] == 1
    assert set(generator.denoiser.asked) == set(range(2 * COUNT))
    generator.denoiser.asked.clear()
    watch._holdout_share()
    sides = [int(number) >= COUNT for number in generator.denoiser.asked]
    assert sum(sides) * 2 == len(sides) > 0, "as many of either side"


def test_of_few_patients_all_are_asked_for(bed: tuple) -> None:
    generator, training, held_out = bed
    for number, entry in enumerate(training + held_out):
        entry["conditions"] = torch.tensor([float(number)])
    generator.denoiser = AskedFor(torch.zeros(2 * COUNT, *SHAPE))
    MembershipWatch(generator, training[:2], held_out[:2], stop_at=0.9, num_samples=4)._holdout_share()
    assert set(generator.denoiser.asked) == {0, 1, COUNT, COUNT + 1}


def test_all_noise_follows_from_the_seed(bed: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    generator, training, _ = bed
    watch, noise, seeds = MembershipWatch(*bed, stop_at=0.9, num_samples=2, seed=7), [], []
    sample = generator.sample_latent
    monkeypatch.setattr(generator, "sample_latent", lambda latent, row: noise.append(latent[0]) or sample(latent, row))
    watch._holdout_share()
    assert torch.equal(torch.stack(noise), torch.stack([normal_of_seed(seed, SHAPE) for seed in (7, 8)]))
    monkeypatch.setattr(
        membership_watch, "denoising_losses", lambda _, x, seed, **__: seeds.append(seed) or np.zeros(len(x))
    )
    watch._losses(training)
    assert set(seeds) == {7}


def test_of_many_training_volumes_the_same_random_ones_are_compared_each_time(bed: tuple, monkeypatch) -> None:
    generator, training, held_out = bed
    watch = MembershipWatch(generator, training, held_out[:12], stop_at=0.9, num_training=10)
    losses, compared = watch._losses, []
    monkeypatch.setattr(
        watch, "_losses", lambda entries: compared.append([int(e["case_id"]) for e in entries]) or losses(entries)
    )
    train(watch, learn_in=9, epochs=2)
    assert compared[:2] == compared[2:] and compared[1] == list(range(COUNT, COUNT + 12))
    assert len(set(compared[0])) == 10 and set(compared[0]) < set(range(COUNT)) and compared[0] != list(range(10))


def test_the_area_is_that_of_the_audit(bed: tuple) -> None:
    generator, training, held_out = bed
    _, areas = train(MembershipWatch(*bed, stop_at=1.0), learn_in=9, epochs=1)
    plain = [torch.stack([torch.from_numpy(np.load(e["image"])[0]) for e in some]) for some in (training, held_out)]
    expected = area_under_curve(*membership_scores(*(denoising_losses(generator, one) for one in plain)))
    assert areas == [pytest.approx(expected.value, abs=1e-9)]


def test_samples_of_what_was_learned_by_heart_are_nearer_to_training_volumes(bed: tuple) -> None:
    _, shares = train(MembershipWatch(*bed, stop_at=1.0), learn_in=2, epochs=2, metric="holdout_share")
    assert shares[1] > 0.9


def test_samples_of_a_mirrored_training_volume_are_nearer_to_it(bed: tuple) -> None:
    generator, training, held_out = bed
    for entry in training + held_out:
        plain = np.load(entry["image"])[0]
        np.save(entry["image"], np.stack([plain, plain[:, ::-1]]))
    generator.denoiser.known = generator.denoiser.known.flip(2)
    _, shares = train(MembershipWatch(*bed, stop_at=1.0), learn_in=1, epochs=1, metric="holdout_share")
    assert shares[0] > 0.9


@pytest.mark.parametrize("metric", ["membership_auc", "holdout_share"])
def test_by_default_nothing_is_computed(bed: tuple, metric: str) -> None:
    assert train(MembershipWatch(*bed), learn_in=1, metric=metric) == (5, [None] * 5)


def test_a_few_held_out_volumes_do_not_stop_a_training_by_chance(bed: tuple) -> None:
    watch = MembershipWatch(*bed, stop_at=0.6)
    watch.load_state_dict({"found": [0.65, 0.1]})
    assert not watch.reached
    watch.load_state_dict({"found": [0.65, 0.05]})
    assert watch.reached and "0.650 ± 0.050" in watch.reason
    watch.load_state_dict({"found": [0.6, 0.01]})
    assert watch.reached, "the level itself is reached"


def test_a_training_that_has_ended_does_not_train_on(bed: tuple) -> None:
    done = MembershipWatch(*bed, stop_at=0.9)
    train(done, learn_in=1)
    again = MembershipWatch(*bed, stop_at=0.9)
    again.load_state_dict(done.state_dict())
    epochs: list[int] = []
    trainer = Engine(lambda *_: epochs.append(1))
    StopWhenConverged(again).attach(trainer)
    trainer.run([0], 5)
    assert epochs == []
    fresh = MembershipWatch(*bed, stop_at=0.9)
    fresh.load_state_dict(fresh.state_dict())
    assert not fresh.reached


def test_volumes_of_one_patient_do_not_count_as_independent(bed: tuple) -> None:
    generator, *whole = bed
    errors = []
    for volumes in (1, 2):  # of each training patient
        of_each = zip(whole, (volumes, 1))
        sides = [[{**entry, "patient_id": str(n // m)} for n, entry in enumerate(side)] for side, m in of_each]
        watch = MembershipWatch(generator, *sides, stop_at=0.9)
        train(watch, learn_in=9, epochs=1)
        assert watch.found is not None
        errors.append(watch.found.error)
        scores = membership_scores(*(watch._losses(side) for side in sides))
        patients = tuple([entry["patient_id"] for entry in side] for side in sides)
        assert watch.found.error == pytest.approx(area_under_curve(*scores, patients).error)
    assert errors[0] != errors[1]


@pytest.mark.parametrize("stop_at", [0.5, 0.3, 1.1])
def test_a_level_that_is_chance_or_none_is_refused(bed: tuple, stop_at: float) -> None:
    with pytest.raises(ValueError, match=rf"above 0\.5, which is chance, and at most 1; got {stop_at}"):
        MembershipWatch(*bed, stop_at=stop_at)
    with pytest.raises(ValueError, match="two or more for validation, got 30 and 1 patients"):
        MembershipWatch(bed[0], bed[1], [bed[2][0]] * 3, stop_at=0.6)
