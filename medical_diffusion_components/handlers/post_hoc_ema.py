"""The length of the weights' average, chosen after training.

Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models", CVPR 2024, section 3.2: keep snapshots
of two power-function averages during training; afterwards a weighted sum of them all comes close to the average of any
other exponent, at any step.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn

from medical_diffusion_components.engine_state import running
from medical_diffusion_components.files import write_atomically
from medical_diffusion_components.handlers.optimiser_steps import optimiser_step
from medical_diffusion_components.weights import load_tensors, save_tensors, unwrap

__all__ = ["AverageSnapshots", "post_hoc_average", "snapshot_shares"]


class AverageSnapshots:
    """Keep one power-function average of ``source`` per exponent, and save all of them every ``every`` optimiser steps.

    An average of exponent g has, after step n, taken a share 1 - (1 - 1/n)^(g + 1) of the weights of that step. Files are
    ``average_<step>.pt`` in ``folder``. It is an object of a checkpoint, so that a resumed training saves the same.

    Args:
        source: the network that is trained.
        folder: where snapshots go; the first process alone writes.
        every: optimiser steps between two snapshots; None keeps no averages and saves nothing.
        gammas: two different exponents, above -1: 16.97 and 6.94 average over about 5 and 10 percent of the training.

    Raises:
        ValueError: fewer than two exponents, equal ones, one that is not above -1, or ``every`` below 1.
    """

    def __init__(
        self,
        source: nn.Module,
        folder: str | os.PathLike,
        every: int | None,
        gammas: Sequence[float] = (16.97, 6.94),
    ) -> None:
        if len(set(gammas)) != len(gammas) or len(gammas) < 2 or min(gammas) <= -1:
            raise ValueError(f"expected at least two different exponents above -1, got {list(gammas)}")
        if every is not None and every < 1:
            raise ValueError(f"expected at least 1 step between two snapshots, got {every}")
        self.source = unwrap(source)
        self.folder = Path(folder)
        self.every = every
        self.gammas = [float(gamma) for gamma in gammas]
        self.averages = [self._copy() for _ in self.gammas] if every is not None else []

    def _copy(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self.source.state_dict().items()}

    def attach(self, engine: Engine) -> None:
        if self.every is not None:
            engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    @torch.no_grad()
    def __call__(self, engine: Engine) -> None:
        step = optimiser_step(engine)
        if step is None or self.every is None:
            return
        state = self.source.state_dict()
        for gamma, average in zip(self.gammas, self.averages):
            share = 1 - (1 - 1 / step) ** (gamma + 1)
            for name, tensor in state.items():
                if tensor.is_floating_point():
                    average[name].lerp_(tensor, share)
                else:
                    average[name].copy_(tensor)
        if step % self.every == 0 and running(engine).rank == 0:
            cpu = [{name: tensor.cpu() for name, tensor in average.items()} for average in self.averages]
            content = {"step": step, "gammas": self.gammas, "averages": cpu}
            path = self.folder / f"average_{step:09d}.pt"
            write_atomically(path, lambda temporary: save_tensors(content, temporary))

    def state_dict(self) -> dict[str, Any]:
        """Exponents and averages."""
        return {"gammas": self.gammas, "averages": self.averages}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the averages of :meth:`state_dict`.

        Raises:
            ValueError: they have other exponents.
        """
        if state["gammas"] != self.gammas:
            raise ValueError(f"averages of exponents {state['gammas']}, but {self.gammas} are configured")
        for own, saved in zip(self.averages, state["averages"]):
            for name, tensor in own.items():
                tensor.copy_(saved[name])


class _Profile(NamedTuple):
    """How much the weights of each step count in an average: (g + 1) s^g / n^(g + 1) for those of step s of n."""

    step: float
    gamma: float


def _overlap(one: _Profile, other: _Profile) -> float:
    """Integral over all steps of the product of two profiles."""
    shortest, total = min(one.step, other.step), one.gamma + other.gamma + 1
    # with each step as a share of the shortest, so that nothing overflows
    scale = (shortest / one.step) ** (one.gamma + 1) * (shortest / other.step) ** (other.gamma + 1)
    return (one.gamma + 1) * (other.gamma + 1) / total * scale / shortest


def snapshot_shares(steps: Sequence[int], gammas: Sequence[float], step: int, gamma: float) -> np.ndarray:
    """The share of each snapshot in the sum that is nearest to the average of exponent ``gamma`` after ``step``.

    Least squares between profiles (Karras et al., algorithm 3), under the condition that shares sum to 1: what does not
    change during training then comes out as it is, however few the snapshots.

    Args:
        steps: of each snapshot, at most ``step``.
        gammas: of each snapshot.
        step: after which the average is wanted.
        gamma: its exponent, above -0.5.

    Returns:
        One share per snapshot, float64.

    Raises:
        ValueError: no snapshot, one from after ``step``, lists of different lengths, or an exponent out of range.
    """
    if not steps or len(steps) != len(gammas) or max(steps) > step:
        raise ValueError(f"expected snapshots up to step {step}, one exponent each; got {list(steps)}, {list(gammas)}")
    if min(*gammas, gamma) <= -0.5:
        raise ValueError(f"expected exponents above -0.5, got {list(gammas)} and {gamma}")
    kept = [_Profile(*pair) for pair in zip(steps, gammas)]
    wanted = _Profile(step, gamma)
    count = len(kept)
    system, right = np.zeros((count + 1, count + 1)), np.ones(count + 1)
    unit = _overlap(wanted, wanted)  # so that the condition has the size of the rest
    system[:count, :count] = [[_overlap(one, other) / unit for other in kept] for one in kept]
    system[count, :count] = system[:count, count] = 1  # a Lagrange multiplier
    right[:count] = [_overlap(one, wanted) / unit for one in kept]
    return np.linalg.lstsq(system, right, rcond=1e-12)[0][:count]


def post_hoc_average(folder: str | os.PathLike, gamma: float, step: int | None = None) -> dict[str, Tensor]:
    """The average of exponent ``gamma`` after ``step``, from the snapshots that :class:`AverageSnapshots` has saved.

    Sums are in float64.

    Args:
        folder: where the snapshots are.
        gamma: exponent, best between those of the snapshots and a little beyond.
        step: optimiser step; None is that of the last snapshot.

    Returns:
        State dict of the network; what is no floating-point number is that of the last snapshot used.

    Raises:
        FileNotFoundError: no snapshot in ``folder`` up to ``step``.
    """
    found = {int(path.stem.removeprefix("average_")): path for path in Path(folder).glob("average_*.pt")}
    step = max(found, default=0) if step is None else step
    used = sorted(number for number in found if number <= step)
    if not used:
        raise FileNotFoundError(f"expected snapshots of averages up to step {step} in {folder}, found {sorted(found)}")
    exponents = load_tensors(found[used[0]])["gammas"]
    pairs = [(number, exponent) for number in used for exponent in exponents]
    shares = snapshot_shares([number for number, _ in pairs], [exponent for _, exponent in pairs], step, gamma)
    last = load_tensors(found[used[-1]])["averages"][0]
    total = {
        name: torch.zeros_like(tensor, dtype=torch.float64)
        for name, tensor in last.items()
        if tensor.is_floating_point()
    }
    for number, row in zip(used, shares.reshape(len(used), -1)):
        for share, average in zip(row, load_tensors(found[number])["averages"]):
            for name, tensor in total.items():
                tensor.add_(average[name].double(), alpha=float(share))
    return {name: total[name].to(tensor.dtype) if name in total else tensor for name, tensor in last.items()}
