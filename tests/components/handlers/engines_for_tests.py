"""A tiny MONAI training whose state is easy to look at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedTrainer
from torch import nn

from medical_diffusion_components.data.loading import ResumableSampler


class Trainer(SupervisedTrainer):
    """Six cases in batches of two, a linear network; ``seen`` lists (iteration, cases) of what was trained on."""

    def __init__(self, max_epochs: int, handlers: Sequence[Any] = (), rank: int = 0, width: int = 3) -> None:
        torch.manual_seed(0)
        cases = [{"image": torch.randn(3), "label": torch.randn(width), "case_id": f"case_{n}"} for n in range(6)]
        self.cases = Dataset(cases)
        self.sampler = ResumableSampler(self.cases, seed=1)
        network = nn.Linear(3, width)
        super().__init__(
            device="cpu",
            max_epochs=max_epochs,
            train_data_loader=DataLoader(self.cases, batch_size=2, sampler=self.sampler),
            network=network,
            optimizer=torch.optim.Adam(network.parameters(), lr=0.1),
            loss_function=nn.MSELoss(),
            decollate=False,
        )
        self.state.rank = rank
        self.seen: list[tuple[int, list[str]]] = []
        for handler in handlers:
            handler.attach(self)

    def _iteration(self, engine: Any, batchdata: dict) -> dict:
        self.seen.append((self.state.iteration, list(batchdata["case_id"])))
        return super()._iteration(engine, batchdata)
