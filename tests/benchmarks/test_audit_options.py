"""The controls of the copy audit: what their options want. A whole run is in test_benchmark_commands.py."""

from __future__ import annotations

import sys
from pathlib import Path

import audit
import pytest


def test_samples_are_judged_with_the_first_stage_that_decoded_them_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["audit.py", "--cohort", "knee", "--samples", str(tmp_path)])
    monkeypatch.setattr(audit, "volumes", None)
    with pytest.raises(SystemExit):
        audit.main()
    assert "--samples needs --first_stage" in capsys.readouterr().err
