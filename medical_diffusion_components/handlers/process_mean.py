"""Losses of the global batch on every process."""

from __future__ import annotations

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events

from medical_diffusion_components.distributed import world_size
from medical_diffusion_components.engine_state import running

__all__ = ["MeanOverProcesses"]


class MeanOverProcesses:
    """Replace the losses in ``engine.state.output`` by their mean over all processes.

    Each process computes the loss of its share of a batch. What is shown, written to TensorBoard and checked for being
    finite is then that of the whole batch, and a loss that is not finite ends every process in the same iteration. With
    one process, nothing happens. Attach it before the handlers that read the losses.
    """

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    @torch.no_grad()
    def __call__(self, engine: Engine) -> None:
        output = running(engine).output
        names = [n for n, v in output.items() if torch.is_tensor(v) and v.ndim == 0 and v.is_floating_point()]
        if world_size() == 1 or not names:
            return
        values = torch.stack([output[name].detach().float() for name in names])
        dist.all_reduce(values)
        output.update(zip(names, (values / world_size()).unbind()))
