from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from medical_diffusion_components.handlers.first_rank_writer import SilentWriter, first_rank_writer


def test_the_first_process_alone_writes(tmp_path: Path, as_rank) -> None:
    for rank in (2, 1, 0):
        as_rank(rank, 3)
        writer = first_rank_writer(tmp_path)
        writer.add_scalar("loss", 10.0 * rank, 1)
        writer.add_scalars("losses", {"a": 1.0}, 1)
        writer.add_hparams({"rate": 0.1}, {"loss": 1.0}, run_name="hparams")
        writer.add_figure("montage", plt.figure(), 1)
        writer.flush()
        writer.close()
        if rank:
            assert list(tmp_path.iterdir()) == []
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [event.value for event in events.Scalars("loss")] == [0.0]
    assert len(list(tmp_path.glob("events.*"))) == 1


def test_a_silent_writer_knows_no_other_methods_than_a_writer_does() -> None:
    with pytest.raises(AttributeError, match="no method 'add_scalr'"):
        SilentWriter().add_scalr("loss", 1.0, 1)
