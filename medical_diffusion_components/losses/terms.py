"""The sum of the terms of an objective."""

from __future__ import annotations

import functools
from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["total"]


def total(terms: Iterable[Tensor]) -> Tensor:
    """Sum of tensors of one shape, from the first to the last: what ``sum`` gives, without its start at the number 0.

    Raises:
        TypeError: no terms.
    """
    return functools.reduce(torch.add, terms)
