"""What all tests share."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import pytest
import torch

# the benchmark scripts are no package; the plain forms in their folder are what tests compare with, too
sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

# One of these runs for minutes. They come first, so that neither process of `make test` waits for the other at the end.
LONGEST = ("test_tutorial.py", "test_docs.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONGEST)  # else as collected


def pytest_collection_finish() -> None:
    """What is imported and collected stays to the end: a tenth of the time went into looking for garbage among it."""
    gc.freeze()


@pytest.fixture(autouse=True)
def _same_seed() -> None:
    torch.manual_seed(0)
