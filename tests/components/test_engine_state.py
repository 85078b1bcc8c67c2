from __future__ import annotations

from typing import get_type_hints

import pytest
import torch
from ignite.engine import Events
from monai.engines import SupervisedEvaluator, Workflow
from torch import nn

from medical_diffusion_components.engine_state import RunningState, running


def test_a_running_engine_of_monai_has_every_entry_of_the_state() -> None:
    seen = {}

    def look(engine: Workflow) -> None:
        state = running(engine)
        seen.update({name: getattr(state, name) for name in get_type_hints(RunningState)})

    batches = [{"image": torch.ones(1, 1, 2), "label": torch.ones(1, 1, 2)}] * 3
    evaluator = SupervisedEvaluator("cpu", batches, nn.Identity())
    evaluator.add_event_handler(Events.ITERATION_COMPLETED, look)
    evaluator.run()
    assert (seen["rank"], seen["device"]) == (0, torch.device("cpu"))
    assert (seen["iteration"], seen["epoch"], seen["max_epochs"], seen["epoch_length"]) == (3, 1, 1, 3)
    assert [set(case) >= {"image", "label"} for case in seen["batch"]] == [True]  # MONAI takes batches apart
    assert ["pred" in case for case in seen["output"]] == [True]


def test_what_a_handler_sets_is_in_the_engine() -> None:
    evaluator = SupervisedEvaluator("cpu", [], nn.Identity(), epoch_length=1)
    running(evaluator).best_metric = 0.25
    assert evaluator.state.best_metric == pytest.approx(0.25)
