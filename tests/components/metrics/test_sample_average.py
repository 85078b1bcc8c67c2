from __future__ import annotations

import pytest
import torch
from ignite.engine import Engine
from ignite.exceptions import NotComputableError

from medical_diffusion_components.metrics.sample_average import SampleAverage


def test_every_sample_counts_alike_whatever_the_batches() -> None:
    batches = [torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0])]
    engine = Engine(lambda _, batch: {"loss": batch})
    SampleAverage(output_transform=lambda output: output["loss"]).attach(engine, "loss")
    for _ in range(2):  # a second epoch starts anew
        found = engine.run(batches).metrics["loss"]
        assert isinstance(found, float) and found == pytest.approx(4.0)


def test_nothing_has_no_mean() -> None:
    with pytest.raises(NotComputableError):
        SampleAverage().compute()
