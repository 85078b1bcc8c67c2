"""A folder of configurations for the tests of this folder."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import pytest
import yaml
from two_stages import FIRST, SECOND


@pytest.fixture(autouse=True)
def undisturbed(monkeypatch) -> None:
    """Put back what starting a workflow changes in the process."""
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", root.handlers[:])
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    """A bundle with two stages that write down with which settings they ran."""
    folder = tmp_path / "two_stages" / "configs"
    folder.mkdir(parents=True)
    (folder / "train_autoencoder.yaml").write_text(yaml.safe_dump(FIRST, sort_keys=False))
    (folder / "train.yaml").write_text(yaml.safe_dump(SECOND, sort_keys=False))
    (folder / "thin.yaml").write_text(yaml.safe_dump({"width": 4, "devices": "$3 + 1"}))
    (folder / "metadata.json").write_text(json.dumps({"version": "1.2.3", "name": "two stages"}))
    return folder
