"""How much of a codebook a data set uses."""

from __future__ import annotations

from collections.abc import Callable

import torch
from ignite.exceptions import NotComputableError
from ignite.metrics import Metric
from ignite.metrics.metric import reinit__is_reduced, sync_all_reduce
from torch import Tensor

__all__ = ["CodebookPerplexity"]


class CodebookPerplexity(Metric):
    """exp(entropy) of how often each code is used, over all volumes of an epoch and all ranks.

    It is the number of codes if all are used equally, and 1 if everything is mapped to one code.

    Args:
        num_codes: size of the codebook.
        output_transform: takes the indices (any shape, int64) from ``engine.state.output``.
        device: where to count.

    Raises:
        NotComputableError: when asked for before the first batch.
    """

    def __init__(
        self,
        num_codes: int,
        output_transform: Callable = lambda output: output["indices"],
        device: str = "cpu",
    ) -> None:
        self.num_codes = num_codes
        super().__init__(output_transform, device=device)

    @reinit__is_reduced
    def reset(self) -> None:
        self.counts = torch.zeros(self.num_codes, dtype=torch.float64, device=self._device)

    @reinit__is_reduced
    def update(self, indices: Tensor) -> None:
        self.counts += torch.bincount(indices.reshape(-1).to(self._device), minlength=self.num_codes)

    @sync_all_reduce("counts")
    def compute(self) -> float:
        if self.counts.sum() == 0:
            raise NotComputableError("the perplexity of a codebook needs at least one batch of indices")
        share = self.counts[self.counts > 0] / self.counts.sum()
        return float(torch.exp(-(share * share.log()).sum()))
