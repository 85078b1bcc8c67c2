"""What all tests share."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

# the benchmark scripts are no package; the plain forms in their folder are what tests compare with, too
sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))


@pytest.fixture(autouse=True)
def _same_seed() -> None:
    torch.manual_seed(0)
