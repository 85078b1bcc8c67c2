"""Random state that follows from the iteration."""

from __future__ import annotations

from ignite.engine import Engine, Events

from medical_diffusion_components.chance import reseed

__all__ = ["SeedIterations"]


class SeedIterations:
    """Seed torch before every iteration from (seed, iteration), the same on all ranks.

    What an iteration draws (noise, timesteps, slices, restarted codes) then depends on nothing that came before it, so a
    resumed training draws what an uninterrupted one would, without saving generators. What is drawn for a row of a batch
    must come through the draws of :mod:`medical_diffusion_components.chance`, or all ranks would draw the same.

    Args:
        seed: the run's seed.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        reseed(self.seed, engine.state.iteration)
