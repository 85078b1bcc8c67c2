from __future__ import annotations

import pytest
import torch

from medical_diffusion_components.losses.adversarial import (
    AdversarialSchedule,
    hinge_discriminator_loss,
    hinge_generator_loss,
)


def test_discriminator_pays_for_real_below_1_and_fake_above_minus_1():
    real = torch.tensor([-1.0, 0.25, 3.0])  # max(0, 1 - D): 2, 0.75, 0
    fake = torch.tensor([[-4.0, -0.5], [1.0, 0.0]])  # max(0, 1 + D): 0, 0.5, 2, 1
    assert hinge_discriminator_loss(real, fake).item() == pytest.approx((2.75 / 3 + 3.5 / 4) / 2)


def test_discriminator_that_tells_them_apart_pays_nothing_and_learns_nothing():
    real, fake = torch.tensor([1.5, 9.0], requires_grad=True), torch.tensor([-1.5, -1.1], requires_grad=True)
    loss = hinge_discriminator_loss(real, fake)
    loss.backward()
    assert loss == 0 and not real.grad.any() and not fake.grad.any()


def test_generator_wants_high_logits_without_bound():
    logits = torch.tensor([[-2.0, 5.0, 1.5]], requires_grad=True)
    loss = hinge_generator_loss(logits)
    loss.backward()
    assert loss.item() == pytest.approx(-1.5)
    torch.testing.assert_close(logits.grad, torch.full((1, 3), -1 / 3))


def test_discriminators_train_alone_before_the_generator_listens_and_then_the_terms_grow():
    schedule = AdversarialSchedule(start=10, discriminator_warmup=4, ramp=5)
    assert [batch for batch in range(30) if schedule.discriminators_train(batch)] == list(range(6, 30))
    weights = [schedule.generator_weight(batch) for batch in range(9, 18)]
    assert weights == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1])


def test_without_warmup_and_ramp_all_starts_at_once():
    schedule = AdversarialSchedule(start=3, discriminator_warmup=0, ramp=0)
    assert [schedule.discriminators_train(batch) for batch in range(5)] == [False, False, False, True, True]
    assert [schedule.generator_weight(batch) for batch in range(5)] == [0, 0, 0, 1, 1]


@pytest.mark.parametrize("settings", [(0, 0, 0), (0, 500, 500), (2, 5, 3), (5000, 500, 500)])
def test_generator_never_listens_to_discriminators_that_do_not_train(settings):
    schedule = AdversarialSchedule(*settings)
    for batch in range(0, 6000, 7):
        assert schedule.discriminators_train(batch) or schedule.generator_weight(batch) == 0


@pytest.mark.parametrize("settings", [{"start": -1}, {"discriminator_warmup": -1}, {"ramp": -5}])
def test_negative_numbers_of_batches_are_errors(settings):
    with pytest.raises(ValueError, match="at least 0"):
        AdversarialSchedule(**settings)


@pytest.mark.parametrize(("start", "ramp"), [(10, 5), (3, 1), (0, 0)])
def test_the_terms_are_full_in_the_batch_before_full_after(start: int, ramp: int) -> None:
    schedule = AdversarialSchedule(start, 0, ramp)
    assert schedule.generator_weight(schedule.full_after - 1) == 1
    assert schedule.generator_weight(schedule.full_after - 2) < 1
