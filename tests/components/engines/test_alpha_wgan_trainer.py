from __future__ import annotations

from copy import deepcopy
from itertools import pairwise

import pytest
import torch
from torch.utils.data import DataLoader

from medical_diffusion_components.engines import AlphaWGANTrainer
from medical_diffusion_components.losses import AlphaWGANLoss, gradient_penalty
from medical_diffusion_components.networks import (
    AlphaWGANGenerator,
    CodeDiscriminator,
    VolumeDiscriminator,
    VolumeEncoder,
)

SIZE = (16, 16, 32)
NAMES = ("network", "encoder", "discriminator", "code_discriminator")


def make_trainer(batches: int = 1, epochs: int = 1, lr: float = 1e-3, **options) -> AlphaWGANTrainer:
    networks = {
        "network": AlphaWGANGenerator(SIZE, 6, 2),
        "encoder": VolumeEncoder(SIZE, 6, 4),
        "discriminator": VolumeDiscriminator(SIZE, 8),
        "code_discriminator": CodeDiscriminator(6, 16),
    }
    parameters = {name: list(network.parameters()) for name, network in networks.items()}
    options.setdefault("train_data_loader", [{"image": torch.rand(2, 1, *SIZE) * 2 - 1} for _ in range(batches)])
    return AlphaWGANTrainer(
        device="cpu",
        max_epochs=epochs,
        **networks,
        optimizer=torch.optim.Adam([*parameters["network"], *parameters["encoder"]], lr),
        discriminator_optimizer=torch.optim.Adam(parameters["discriminator"], lr),
        code_optimizer=torch.optim.Adam(parameters["code_discriminator"], lr),
        loss_function=AlphaWGANLoss(),
        **options,
    )


def test_fewer_volumes_than_a_batch_are_refused() -> None:
    few = DataLoader(torch.zeros(3, 1, *SIZE), batch_size=4, drop_last=True)
    with pytest.raises(ValueError, match="at least one batch of 4 training volumes, got 3 volumes: lower --batch_size"):
        make_trainer(train_data_loader=few)


def weights(trainer: AlphaWGANTrainer) -> dict[str, list[torch.Tensor]]:
    return {name: [p.detach().clone() for p in getattr(trainer, name).parameters()] for name in NAMES}


def changed(before: dict, after: dict) -> set[str]:
    return {name for name in NAMES if any(not torch.equal(a, b) for a, b in zip(before[name], after[name]))}


def test_each_step_changes_its_own_networks_alone() -> None:
    trainer = make_trainer()
    real = trainer.data_loader[0]["image"]
    states = [weights(trainer)]
    _, code, reconstruction, drawn = trainer._step_generator(real)
    states.append(weights(trainer))
    trainer._step_discriminator(real, reconstruction, drawn)
    states.append(weights(trainer))
    trainer._step_code_discriminator(code)
    states.append(weights(trainer))
    assert [changed(one, other) for one, other in pairwise(states)] == [
        {"network", "encoder"},
        {"discriminator"},
        {"code_discriminator"},
    ]


def test_the_step_of_the_generator_follows_the_gradient_of_its_objective() -> None:
    trainer = make_trainer()
    real, torch_state = trainer.data_loader[0]["image"], torch.get_rng_state()
    trainer.optimizer = torch.optim.SGD(trainer.optimizer.param_groups[0]["params"], lr=0.1)
    network, encoder, judge, code_judge = (deepcopy(getattr(trainer, name)) for name in NAMES)
    trainer._step_generator(real)

    torch.set_rng_state(torch_state)
    seeds = torch.randint(2**32, (2,)).tolist()  # each row of noise has a seed of its own
    drawn = torch.stack([torch.randn(6, 1, 1, 1, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    code = encoder(real)
    fake = network(code)
    objective = -judge(fake).mean() - judge(network(drawn)).mean() + 10 * (fake - real).abs().mean()
    (objective - code_judge(code).mean()).backward()
    for name, plain in (("network", network), ("encoder", encoder)):
        for parameter, stepped in zip(plain.parameters(), getattr(trainer, name).parameters()):
            torch.testing.assert_close(stepped, parameter - 0.1 * parameter.grad)


def test_the_steps_of_the_discriminators_follow_the_gradients_of_their_objectives() -> None:
    trainer = make_trainer()
    real = trainer.data_loader[0]["image"]
    _, code, reconstruction, drawn = trainer._step_generator(real)
    judge, code_judge = deepcopy(trainer.discriminator), deepcopy(trainer.code_discriminator)
    trainer.discriminator_optimizer = torch.optim.SGD(trainer.discriminator.parameters(), lr=0.1)
    trainer.code_optimizer = torch.optim.SGD(trainer.code_discriminator.parameters(), lr=0.1)
    state = torch.get_rng_state()
    trainer._step_discriminator(real, reconstruction, drawn)
    trainer._step_code_discriminator(code)

    def share() -> torch.Tensor:
        return torch.randint(2**24, (2,)) / 2**24

    torch.set_rng_state(state)
    penalty = gradient_penalty(judge, real, drawn, share()) + gradient_penalty(judge, real, reconstruction, share())
    scores = judge(reconstruction) + judge(drawn) - 2 * judge(real)
    (scores.mean() + 10 * penalty).backward()
    seeds = torch.randint(2**32, (2,)).tolist()
    noise = torch.stack([torch.randn(6, 1, 1, 1, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    penalty = gradient_penalty(code_judge, noise, code, share())
    ((code_judge(code) - code_judge(noise)).mean() + 10 * penalty).backward()
    for name, plain in (("discriminator", judge), ("code_discriminator", code_judge)):
        for parameter, stepped in zip(plain.parameters(), getattr(trainer, name).parameters()):
            torch.testing.assert_close(stepped, parameter - 0.1 * parameter.grad)


def test_the_discriminator_learns_to_tell_real_from_generated() -> None:
    trainer = make_trainer(lr=1e-3)
    real = trainer.data_loader[0]["image"]
    with torch.no_grad():
        drawn = trainer.network(torch.randn(2, 6, 1, 1, 1))
    for _ in range(30):
        terms = trainer._step_discriminator(real, drawn, drawn)
    assert terms["wasserstein"] < -0.5
    assert trainer.discriminator(real).min() > trainer.discriminator(drawn).max()


def test_output_names_every_term_and_the_sum_of_the_generators() -> None:
    trainer = make_trainer(generator_steps=2)
    trainer.run()
    found = trainer.state.output
    assert found["loss"] == found["l1"] + found["adversarial"] + found["code_adversarial"]
    assert {"wasserstein", "penalty", "code_wasserstein", "code_penalty"} <= found.keys()
    assert not any(term.requires_grad for term in found.values())


def test_no_step_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="generator_steps must be at least 1, got 0"):
        make_trainer(generator_steps=0)


def test_running_statistics_of_the_generator_are_those_of_drawn_codes_alone() -> None:
    trainer = make_trainer()
    network, norm = deepcopy(trainer.network), trainer.network.layers[1]
    with torch.no_grad():
        trainer.encoder.layers[-1].bias += 50.0  # codes that are nothing like drawn ones
        trainer.encoder.layers[-1].bias[0] = -50.0
    state = torch.get_rng_state()
    trainer._step_generator(trainer.data_loader[0]["image"])
    torch.set_rng_state(state)
    seeds = torch.randint(2**32, (2,)).tolist()
    network.train()(torch.stack([torch.randn(6, 1, 1, 1, generator=torch.Generator().manual_seed(s)) for s in seeds]))
    torch.testing.assert_close(norm.running_mean, network.layers[1].running_mean)
    torch.testing.assert_close(norm.running_var, network.layers[1].running_var)
    assert norm.momentum == 0.1
