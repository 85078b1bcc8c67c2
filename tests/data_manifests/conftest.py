from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

MANIFESTS = Path(__file__).parents[2] / "data_manifests"
sys.path.insert(0, str(MANIFESTS))  # the builders are scripts: what they share lies beside them


@pytest.fixture
def manifests() -> Path:
    """The folder of the committed manifests."""
    return MANIFESTS


@pytest.fixture
def builder() -> Callable[[str], ModuleType]:
    """Import a builder by the end of its name, e.g. ``adni``."""

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"build_{name}", MANIFESTS / f"build_{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load
