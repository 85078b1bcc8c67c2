from __future__ import annotations

import torch
from ignite.engine import Engine, Events

from medical_diffusion_components.handlers.seeding import SeedIterations


def draws(seed: int = 0, rank: int = 0, start: int = 0, noise: int = 0) -> list[float]:
    """What twelve iterations draw, those before ``start`` left out, with ``noise`` draws between two of them."""
    drawn = []
    engine = Engine(lambda *_: drawn.append(torch.rand(1).item()))
    engine.state.rank = rank

    def resume(engine: Engine) -> None:
        engine.state.iteration, engine.state.epoch = start, start // 4

    engine.add_event_handler(Events.STARTED, resume)
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda _: torch.rand(noise))
    SeedIterations(seed).attach(engine)
    engine.run([0] * 4, max_epochs=3)
    return drawn


def test_an_iteration_draws_the_same_wherever_training_started() -> None:
    assert draws(start=6) == draws()[6:]


def test_an_iteration_draws_the_same_whatever_was_drawn_before_it() -> None:
    assert draws(noise=7) == draws()


def test_iterations_and_seeds_differ_and_ranks_do_not() -> None:
    assert len(set(draws() + draws(seed=1))) == 24
    assert draws(rank=1) == draws()
