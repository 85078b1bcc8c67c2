from __future__ import annotations

import torch
import torch.distributed as dist
from ignite.engine import Engine

from medical_diffusion_components.handlers.process_mean import MeanOverProcesses


def output_of_a_run(monkeypatch, others: float | None) -> dict:
    """Output after one iteration; ``others``: what a second process adds to each loss."""
    made = {"loss": torch.tensor(2.0, requires_grad=True), "codes": torch.tensor(7), "image": torch.ones(3)}
    if others is not None:
        monkeypatch.setattr(dist, "is_initialized", lambda: True)
        monkeypatch.setattr(dist, "get_world_size", lambda: 2)
        monkeypatch.setattr(dist, "all_reduce", lambda values: values.add_(others))
    engine = Engine(lambda *_: dict(made))
    MeanOverProcesses().attach(engine)
    engine.run([0])
    return engine.state.output


def test_losses_become_their_mean_and_all_else_stays(monkeypatch) -> None:
    output = output_of_a_run(monkeypatch, others=5.0)
    assert output["loss"] == (2 + 5) / 2 and output["codes"] == 7 and torch.equal(output["image"], torch.ones(3))


def test_a_process_alone_keeps_its_loss(monkeypatch) -> None:
    assert output_of_a_run(monkeypatch, None)["loss"] == 2
